"""What the notebooks claim, how a claim could fail, and what the recorded runs say.

    from alignkit import claims

    ledger = claims.open("02_reward_modeling", seed=seed, profile=profile)

`register` reads the claims and their rules, `ledger` records and sums up values, `statistics` judges them,
`fingerprint` tells when they no longer describe the code, `table` shows them.
"""

from alignkit.claims.ledger import (
    EVIDENCE_PROFILE,
    EVIDENCE_SEEDS,
    PROFILES,
    RESULTS,
    Ledger,
    dumps,
    evidence,
    evidence_hash,
    open,
    read_result,
    result_path,
    summarize,
)
from alignkit.claims.register import Claim, load, of_notebook
from alignkit.claims.table import markdown
