"""Phase 3, treatment: how the policy uses the reward. All losses are in `optimize.losses`, most of them here, too."""

from alignkit.optimize import losses
from alignkit.optimize.advantages import (
    batch_leave_one_out,
    gae,
    group_centered,
    group_normalized,
    leave_one_out,
    reward_to_go,
    whitened,
)
from alignkit.optimize.config import AdaptiveKL, Method
from alignkit.optimize.decoding import (
    FunctionGuide,
    Guide,
    Guided,
    PrefixValue,
    blockwise,
    every_completion,
    exact_values,
)
from alignkit.optimize.experience import Experience, token_rewards
from alignkit.optimize.fresh_samples import as_labeler, online_dpo, reward_regression
from alignkit.optimize.gradients import cosine, project_conflicts, reward_gradient, unshrunk_cosine
from alignkit.optimize.in_context import InContext, shuffled_answers
from alignkit.optimize.inference import (
    acceptance_rate,
    best_of_n,
    ratio_kl,
    revise,
    sample_optimum,
    self_consistent,
    soft_best_of_n,
    soft_best_of_n_ratio,
    vote,
)
from alignkit.optimize.losses import (
    anchor_loss,
    clipped_surrogate,
    conditional_loss,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kl_estimate,
    kto_loss,
    mdpo_loss,
    modpo_loss,
    nll_loss,
    orpo_loss,
    regression_loss,
    robust_dpo_loss,
    simpo_loss,
)
from alignkit.optimize.methods import (
    METHODS,
    dapo,
    dr_grpo,
    gdpo,
    grpo,
    gspo,
    ppo,
    reinforce,
    reinforce_plus_plus,
    remax,
    rloo,
)
from alignkit.optimize.more_than_pairs import crop, mdpo, modpo
from alignkit.optimize.preference import (
    PAIR_METHODS,
    apo_down,
    apo_zero,
    ches,
    cpo,
    dpo,
    from_pairs,
    from_rankings,
    hinge,
    ipo,
    kto,
    length_regularized_dpo,
    on_pairs,
    orpo,
    pro,
    robust_dpo,
    rrhf,
    sft,
    simpo,
    slic_hf,
)
from alignkit.optimize.rl import policy_gradient
from alignkit.optimize.rounds import (
    in_rounds,
    iterative_dpo,
    pairs_of,
    raft,
    rso,
    spin,
    sppo,
)
from alignkit.optimize.weights import merged, soup, with_lora
from alignkit.training import summed_logprobs, train

#: Every treatment that is here, by the survey's families of optimization.
FAMILIES = {
    "rl": ("rloo", "grpo", "ppo", "reinforce", "remax", "reinforce_plus_plus", "dr_grpo", "dapo", "gspo"),
    "rl-free": (*PAIR_METHODS, "kto", "rrhf", "pro", "online_dpo", "iterative_dpo", "raft", "rso", "spin", "sppo",
                "reward_regression", "sft", "modpo", "mdpo"),
    "inference-time": ("best_of_n", "Guided", "revise", "soft_best_of_n", "sample_optimum", "blockwise",
                       "self_consistent", "vote"),
    "in-context": ("InContext",),
}  # fmt: skip
