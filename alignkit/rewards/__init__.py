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
from alignkit.rewards.losses import bradley_terry_loss, ordinal_loss, plackett_luce_loss
from alignkit.rewards.model import RewardModel
from alignkit.rewards.rankings import PlackettLuce
from alignkit.rewards.ratings import Binary, Ordinal, Regression
from alignkit.rewards.rules import Rule, RuleReward, contains, ends_with, prompt_contains, words_over

__all__ = [
    "Binary",
    "BradleyTerry",
    "FunctionReward",
    "GoldReward",
    "Judgement",
    "Ordinal",
    "PlackettLuce",
    "RandomReward",
    "Regression",
    "Reward",
    "RewardModel",
    "Rule",
    "RuleReward",
    "as_reward",
    "bradley_terry_loss",
    "calibration_error",
    "contains",
    "ends_with",
    "fit_temperature",
    "ordinal_loss",
    "plackett_luce_loss",
    "prompt_contains",
    "score_pairs",
    "sentence_ends",
    "to_trl",
    "words_over",
]
