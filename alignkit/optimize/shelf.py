"""Every treatment that is here, by the survey's families of optimization; names are those of `alignkit.optimize`."""

FAMILIES = {
    "rl": ("rloo", "grpo", "ppo", "reinforce", "remax", "reinforce_plus_plus", "dr_grpo", "dapo", "gspo"),
    "rl-free": (
        *("dpo", "kto", "ipo", "simpo", "orpo", "robust_dpo", "cpo", "apo", "hinge", "slic_hf"),
        *("length_regularized_dpo", "rrhf", "pro", "online_dpo", "iterative_dpo", "raft", "rso", "spin", "sppo"),
        *("reward_regression", "sft", "modpo", "mdpo"),
    ),
    "inference-time": ("best_of_n", "Guided", "revise", "soft_best_of_n", "sample_optimum", "blockwise",
                       "self_consistent", "vote"),
    "in-context": ("InContext",),
}  # fmt: skip
