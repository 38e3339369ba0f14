"""Check-ups that look across the rooms: of preference data, of a reward, of a whole case. Nothing imports this one."""

from alignkit.errors import needs

with needs("checkup"):
    from alignkit.checkup.auditing import Audit, audit
    from alignkit.checkup.case import Case
    from alignkit.checkup.diagnosis import Diagnosis, diagnose
    from alignkit.checkup.holdout import HeldOut, fitting, held_out, in_words, learning_curve, mend, split_by_prompt
    from alignkit.checkup.pairs import PairSet, read_pairs
    from alignkit.checkup.trials import Trial, trial
