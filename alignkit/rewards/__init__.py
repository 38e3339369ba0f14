"""Phase 2, prescription: rewards, each with a card that says where it stands in the survey's four dimensions."""

from alignkit.rewards.bag_of_words import BagOfWords
from alignkit.rewards.base import FunctionReward, GoldReward, Judgement, RandomReward, Reward, as_reward, to_trl
from alignkit.rewards.combined import (
    Ensemble,
    WorstGroup,
    averaged_weights,
    combined_scores,
    max_min_weights,
    tilted_means,
)
from alignkit.rewards.comparator import Comparator, PairReward
from alignkit.rewards.hybrid import Hybrid, MixedSupervision, Shaped, Veto, levels, source_reliability, weigh_rules
from alignkit.rewards.judge import Judge, PairJudge
from alignkit.rewards.losses import bradley_terry_loss, ordinal_loss, plackett_luce_loss
from alignkit.rewards.model import RewardModel
from alignkit.rewards.objectives import Asked, ByTask, Decoupled, Lagrangian, MaxMin, Stages, Weighted, Worst
from alignkit.rewards.personal import PersonalReward
from alignkit.rewards.pictures import Grounded, PictureReward, detector
from alignkit.rewards.process import ProcessReward, aggregate_steps
from alignkit.rewards.rules import (
    Check,
    Rubric,
    Rule,
    RuleReward,
    Verifiable,
    asked,
    contains,
    ends_with,
    has_form,
    repeats,
    verified,
    words_over,
)
from alignkit.rewards.scalar import (
    Binary,
    BradleyTerry,
    Ordinal,
    PlackettLuce,
    Regression,
    SameHead,
    calibration_error,
    fit_temperature,
    refresh,
    score_pairs,
)
from alignkit.rewards.shelf import shelf
from alignkit.rewards.texts import parses, read_faults, reader, sentence_ends, write_faults
from alignkit.rewards.tokens import ByToken, ImplicitReward
from alignkit.rewards.vector import Distributional, Gated, MultiAspect, explained
