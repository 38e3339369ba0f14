"""Phase 2, prescription: rewards, each with a card that says where it stands in the survey's four dimensions."""

from alignkit.rewards.bag_of_words import BagOfWords
from alignkit.rewards.base import (
    FunctionReward,
    GoldReward,
    Judgement,
    RandomReward,
    Reward,
    as_reward,
    columns_of,
    repeated,
    sentence_ends,
    to_trl,
)
from alignkit.rewards.bradley_terry import BradleyTerry, calibration_error, fit_temperature, score_pairs
from alignkit.rewards.by_token import ByToken
from alignkit.rewards.comparator import Comparator, PairReward
from alignkit.rewards.continual import refresh
from alignkit.rewards.distributional import Distributional, explained, normal_preference_loss
from alignkit.rewards.ensemble import Ensemble, SameHead, averaged_weights, combined_scores
from alignkit.rewards.hybrid import Hybrid, MixedSupervision, Veto, audit, weigh_rules
from alignkit.rewards.implicit import ImplicitReward
from alignkit.rewards.judge import Judge, PairJudge
from alignkit.rewards.losses import bradley_terry_loss, ordinal_loss, plackett_luce_loss
from alignkit.rewards.model import RewardModel
from alignkit.rewards.objectives import Asked, ByTask, Decoupled, Lagrangian, MaxMin, Objectives, Weighted, Worst
from alignkit.rewards.personal import PersonalReward, sort_people
from alignkit.rewards.pictures import Grounded, PictureReward, detector
from alignkit.rewards.process import ProcessReward, aggregate_steps, step_tokens
from alignkit.rewards.rankings import PlackettLuce
from alignkit.rewards.ratings import Binary, Ordinal, Regression
from alignkit.rewards.reader import reader
from alignkit.rewards.rubric import Rubric
from alignkit.rewards.rules import (
    Check,
    Rule,
    RuleReward,
    asked,
    contains,
    ends_with,
    has_form,
    prompt_contains,
    repeats,
    words_over,
)
from alignkit.rewards.shaped import Shaped, bent, levels
from alignkit.rewards.shelf import shelf
from alignkit.rewards.stages import Stages
from alignkit.rewards.vector import Gated, MultiAspect
from alignkit.rewards.verdicts import read_faults, write_faults
from alignkit.rewards.verifiable import Verifiable, verified
from alignkit.rewards.worst_group import WorstGroup, max_min_weights, tilted_means

__all__ = [
    "Asked",
    "BagOfWords",
    "Binary",
    "BradleyTerry",
    "ByTask",
    "ByToken",
    "Check",
    "Comparator",
    "Decoupled",
    "Distributional",
    "Ensemble",
    "FunctionReward",
    "Gated",
    "GoldReward",
    "Grounded",
    "Hybrid",
    "ImplicitReward",
    "Judge",
    "Judgement",
    "Lagrangian",
    "MaxMin",
    "MixedSupervision",
    "MultiAspect",
    "Objectives",
    "Ordinal",
    "PairJudge",
    "PairReward",
    "PersonalReward",
    "PictureReward",
    "PlackettLuce",
    "ProcessReward",
    "RandomReward",
    "Regression",
    "Reward",
    "RewardModel",
    "Rubric",
    "Rule",
    "RuleReward",
    "SameHead",
    "Shaped",
    "Stages",
    "Verifiable",
    "Veto",
    "Weighted",
    "Worst",
    "WorstGroup",
    "aggregate_steps",
    "as_reward",
    "asked",
    "audit",
    "averaged_weights",
    "bent",
    "bradley_terry_loss",
    "calibration_error",
    "columns_of",
    "combined_scores",
    "contains",
    "detector",
    "ends_with",
    "explained",
    "fit_temperature",
    "has_form",
    "levels",
    "max_min_weights",
    "normal_preference_loss",
    "ordinal_loss",
    "plackett_luce_loss",
    "prompt_contains",
    "read_faults",
    "reader",
    "refresh",
    "repeated",
    "repeats",
    "score_pairs",
    "sentence_ends",
    "shelf",
    "sort_people",
    "step_tokens",
    "tilted_means",
    "to_trl",
    "verified",
    "weigh_rules",
    "words_over",
    "write_faults",
]
