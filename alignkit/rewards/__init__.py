"""Phase 2, prescription: rewards, each with a card that says where it stands in the survey's four dimensions."""

from alignkit.rewards.base import (
    FunctionReward,
    GoldReward,
    Judgement,
    RandomReward,
    Reward,
    as_reward,
    sentence_ends,
    to_trl,
)
from alignkit.rewards.bradley_terry import BradleyTerry, calibration_error, fit_temperature, score_pairs
from alignkit.rewards.by_token import ByToken
from alignkit.rewards.comparator import Comparator, PairReward
from alignkit.rewards.hybrid import Hybrid, MixedSupervision, Veto, audit, weigh_rules
from alignkit.rewards.implicit import ImplicitReward
from alignkit.rewards.judge import Judge, PairJudge
from alignkit.rewards.losses import bradley_terry_loss, ordinal_loss, plackett_luce_loss
from alignkit.rewards.model import RewardModel
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
from alignkit.rewards.shelf import shelf
from alignkit.rewards.stages import Stages
from alignkit.rewards.vector import Gated, MultiAspect
from alignkit.rewards.verdicts import read_faults, write_faults
from alignkit.rewards.verifiable import Verifiable, verified

__all__ = [
    "Binary",
    "BradleyTerry",
    "ByToken",
    "Check",
    "Comparator",
    "FunctionReward",
    "Gated",
    "GoldReward",
    "Hybrid",
    "ImplicitReward",
    "Judge",
    "Judgement",
    "MixedSupervision",
    "MultiAspect",
    "Ordinal",
    "PairJudge",
    "PairReward",
    "PlackettLuce",
    "ProcessReward",
    "RandomReward",
    "Regression",
    "Reward",
    "RewardModel",
    "Rubric",
    "Rule",
    "RuleReward",
    "Stages",
    "Verifiable",
    "Veto",
    "aggregate_steps",
    "as_reward",
    "asked",
    "audit",
    "bradley_terry_loss",
    "calibration_error",
    "contains",
    "ends_with",
    "fit_temperature",
    "has_form",
    "ordinal_loss",
    "plackett_luce_loss",
    "prompt_contains",
    "read_faults",
    "reader",
    "repeats",
    "score_pairs",
    "sentence_ends",
    "shelf",
    "step_tokens",
    "to_trl",
    "verified",
    "weigh_rules",
    "words_over",
    "write_faults",
]
