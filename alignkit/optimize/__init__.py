"""Phase 3, treatment: how the policy uses the reward."""

from alignkit.optimize.advantages import (
    dense_group_normalized,
    dense_leave_one_out,
    group_normalized,
    leave_one_out,
    reward_to_go,
)
from alignkit.optimize.credit import token_rewards
from alignkit.optimize.displacement import ches
from alignkit.optimize.inference import best_of_n, revise
from alignkit.optimize.losses import clipped_surrogate, dpo_loss, kl_estimate
from alignkit.optimize.policy_gradient import grpo, policy_gradient, rloo
from alignkit.optimize.preference import dpo, sft, summed_logprobs

__all__ = [
    "best_of_n",
    "ches",
    "clipped_surrogate",
    "dense_group_normalized",
    "dense_leave_one_out",
    "dpo",
    "dpo_loss",
    "group_normalized",
    "grpo",
    "kl_estimate",
    "leave_one_out",
    "policy_gradient",
    "reward_to_go",
    "revise",
    "rloo",
    "sft",
    "summed_logprobs",
    "token_rewards",
]
