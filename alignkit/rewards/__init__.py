"""Phase 2, prescription: rewards, each with a card that says where it stands in the survey's four dimensions.

Names are imported when first used: a notebook depends only on the code that it runs.
"""

import lazy_loader

from alignkit.rewards.reader import reader  # noqa: F401 (named like its module, which would hide it)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bag_of_words": ["BagOfWords"],
        "base": [
            "FunctionReward", "GoldReward", "Judgement", "RandomReward", "Reward", "as_reward", "sentence_ends",
            "to_trl",
        ],
        "bradley_terry": ["BradleyTerry", "calibration_error", "fit_temperature", "score_pairs"],
        "by_token": ["ByToken"],
        "comparator": ["Comparator", "PairReward"],
        "continual": ["refresh"],
        "distributional": ["Distributional", "explained", "normal_preference_loss"],
        "ensemble": ["Ensemble", "SameHead", "averaged_weights", "combined_scores"],
        "hybrid": ["Hybrid", "MixedSupervision", "Veto", "audit", "weigh_rules"],
        "implicit": ["ImplicitReward"],
        "judge": ["Judge", "PairJudge"],
        "losses": ["bradley_terry_loss", "ordinal_loss", "plackett_luce_loss"],
        "model": ["RewardModel"],
        "objectives": ["Asked", "ByTask", "Decoupled", "Lagrangian", "MaxMin", "Objectives", "Weighted", "Worst"],
        "personal": ["PersonalReward", "sort_people"],
        "pictures": ["Grounded", "PictureReward", "detector"],
        "process": ["ProcessReward", "aggregate_steps", "step_tokens"],
        "rankings": ["PlackettLuce"],
        "ratings": ["Binary", "Ordinal", "Regression"],
        "reader": ["reader"],
        "rubric": ["Rubric"],
        "rules": [
            "Check", "Rule", "RuleReward", "asked", "contains", "ends_with", "has_form", "prompt_contains",
            "repeats", "words_over",
        ],
        "shaped": ["Shaped", "bent", "levels"],
        "shelf": ["shelf"],
        "stages": ["Stages"],
        "vector": ["Gated", "MultiAspect"],
        "verdicts": ["read_faults", "write_faults"],
        "verifiable": ["Verifiable", "verified"],
        "worst_group": ["WorstGroup", "max_min_weights", "tilted_means"],
    },
)  # fmt: skip
