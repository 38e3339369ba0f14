"""Phase 3, treatment: how the policy uses the reward."""

from alignkit.optimize.advantages import (
    batch_leave_one_out,
    gae,
    group_centered,
    group_normalized,
    leave_one_out,
    reward_to_go,
    whitened,
)
from alignkit.optimize.binary import kto
from alignkit.optimize.conditional import anchor_loss, conditional_loss, crop, mdpo, mdpo_loss
from alignkit.optimize.conflict import cosine, project_conflicts, reward_gradient, unshrunk_cosine
from alignkit.optimize.context import InContext, kl_to, shuffled_answers
from alignkit.optimize.credit import token_rewards
from alignkit.optimize.decoding import FunctionGuide, Guide, Guided, ModelGuide, blockwise
from alignkit.optimize.displacement import ches
from alignkit.optimize.experience import Experience
from alignkit.optimize.inference import best_of_n, revise
from alignkit.optimize.iterative import iterative_dpo, raft, rejection_sample, rso
from alignkit.optimize.labelers import asks, preference
from alignkit.optimize.listwise import pro, rrhf
from alignkit.optimize.lora import with_lora
from alignkit.optimize.losses import clipped_surrogate, kl_estimate, log_ratio, policy_loss
from alignkit.optimize.methods import (
    METHODS,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    ppo,
    reinforce,
    reinforce_plus_plus,
    remax,
    rloo,
)
from alignkit.optimize.multi_objective import gdpo, modpo, modpo_loss
from alignkit.optimize.online import online_dpo
from alignkit.optimize.pair_losses import (
    apo_down_loss,
    apo_zero_loss,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    length_regularized_dpo_loss,
    nll_loss,
    orpo_loss,
    pro_loss,
    robust_dpo_loss,
    rrhf_loss,
    simpo_loss,
    sppo_loss,
)
from alignkit.optimize.preference import (
    apo,
    cpo,
    dpo,
    from_pairs,
    hinge,
    ipo,
    length_regularized_dpo,
    orpo,
    robust_dpo,
    sft,
    simpo,
    slic_hf,
)
from alignkit.optimize.regression import regression_loss, reward_regression
from alignkit.optimize.rl import AdaptiveKL, Method, policy_gradient
from alignkit.optimize.rounds import in_rounds, pairs_of
from alignkit.optimize.selection import acceptance_rate, ratio_kl, sample_optimum, soft_best_of_n, soft_best_of_n_ratio
from alignkit.optimize.self_play import spin, sppo, win_rates
from alignkit.optimize.shelf import FAMILIES
from alignkit.optimize.soups import soup
from alignkit.optimize.training import summed_logprobs, train
from alignkit.optimize.values import PrefixValue, every_completion, exact_values
from alignkit.optimize.voting import self_consistent, vote

__all__ = [
    "AdaptiveKL",
    "Experience",
    "FAMILIES",
    "FunctionGuide",
    "Guide",
    "Guided",
    "InContext",
    "METHODS",
    "Method",
    "ModelGuide",
    "PrefixValue",
    "acceptance_rate",
    "anchor_loss",
    "apo",
    "apo_down_loss",
    "apo_zero_loss",
    "asks",
    "batch_leave_one_out",
    "best_of_n",
    "blockwise",
    "ches",
    "clipped_surrogate",
    "conditional_loss",
    "cosine",
    "cpo",
    "cpo_loss",
    "crop",
    "dapo",
    "dpo",
    "dpo_loss",
    "dr_grpo",
    "every_completion",
    "exact_values",
    "from_pairs",
    "gae",
    "gdpo",
    "group_centered",
    "group_normalized",
    "grpo",
    "gspo",
    "hinge",
    "hinge_loss",
    "in_rounds",
    "ipo",
    "ipo_loss",
    "iterative_dpo",
    "kl_estimate",
    "kl_to",
    "kto",
    "kto_loss",
    "leave_one_out",
    "length_regularized_dpo",
    "length_regularized_dpo_loss",
    "log_ratio",
    "mdpo",
    "mdpo_loss",
    "modpo",
    "modpo_loss",
    "nll_loss",
    "online_dpo",
    "orpo",
    "orpo_loss",
    "pairs_of",
    "policy_gradient",
    "policy_loss",
    "ppo",
    "preference",
    "pro",
    "pro_loss",
    "project_conflicts",
    "raft",
    "ratio_kl",
    "regression_loss",
    "reinforce",
    "reinforce_plus_plus",
    "rejection_sample",
    "remax",
    "revise",
    "reward_gradient",
    "reward_regression",
    "reward_to_go",
    "rloo",
    "robust_dpo",
    "robust_dpo_loss",
    "rrhf",
    "rrhf_loss",
    "rso",
    "sample_optimum",
    "self_consistent",
    "sft",
    "shuffled_answers",
    "simpo",
    "simpo_loss",
    "slic_hf",
    "soft_best_of_n",
    "soft_best_of_n_ratio",
    "soup",
    "spin",
    "sppo",
    "sppo_loss",
    "summed_logprobs",
    "token_rewards",
    "train",
    "unshrunk_cosine",
    "vote",
    "whitened",
    "win_rates",
    "with_lora",
]
