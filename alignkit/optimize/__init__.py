"""Phase 3, treatment: how the policy uses the reward.

Names are imported when first used: a notebook depends only on the code of the methods it runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "advantages": [
            "batch_leave_one_out", "gae", "group_centered", "group_normalized", "leave_one_out", "reward_to_go",
            "whitened",
        ],
        "binary": ["kto"],
        "conflict": ["cosine", "project_conflicts", "reward_gradient", "unshrunk_cosine"],
        "conditional": ["anchor_loss", "conditional_loss", "crop", "mdpo", "mdpo_loss"],
        "context": ["InContext", "kl_to", "shuffled_answers"],
        "credit": ["token_rewards"],
        "decoding": ["FunctionGuide", "Guide", "Guided", "ModelGuide", "blockwise"],
        "displacement": ["ches"],
        "experience": ["Experience"],
        "inference": ["best_of_n", "revise"],
        "iterative": ["iterative_dpo", "raft", "rejection_sample", "rso"],
        "labelers": ["asks", "preference"],
        "listwise": ["pro", "rrhf"],
        "lora": ["with_lora"],
        "losses": ["clipped_surrogate", "kl_estimate", "log_ratio", "policy_loss"],
        "methods": [
            "METHODS", "dapo", "dr_grpo", "gspo", "grpo", "ppo", "reinforce", "reinforce_plus_plus", "remax", "rloo",
        ],
        "multi_objective": ["gdpo", "modpo", "modpo_loss"],
        "online": ["online_dpo"],
        "pair_losses": [
            "apo_down_loss", "apo_zero_loss", "cpo_loss", "dpo_loss", "hinge_loss", "ipo_loss", "kto_loss",
            "length_regularized_dpo_loss", "nll_loss", "orpo_loss", "pro_loss", "robust_dpo_loss", "rrhf_loss",
            "simpo_loss", "sppo_loss",
        ],
        "preference": [
            "apo", "cpo", "dpo", "from_pairs", "hinge", "ipo", "length_regularized_dpo", "orpo", "robust_dpo", "sft",
            "simpo", "slic_hf",
        ],
        "regression": ["regression_loss", "reward_regression"],
        "rl": ["AdaptiveKL", "Method", "policy_gradient"],
        "rounds": ["in_rounds", "pairs_of"],
        "self_play": ["spin", "sppo", "win_rates"],
        "selection": [
            "acceptance_rate", "ratio_kl", "sample_optimum", "soft_best_of_n", "soft_best_of_n_ratio",
        ],
        "shelf": ["FAMILIES"],
        "soups": ["soup"],
        "training": ["summed_logprobs", "train"],
        "values": ["PrefixValue", "every_completion", "exact_values"],
        "voting": ["self_consistent", "vote"],
    },
)  # fmt: skip
