"""Phase 2, prescription: rewards, each with a card that says where it stands in the survey's four dimensions.

Names are imported when first used: a notebook depends only on the code that it runs.
"""

import lazy_loader

from alignkit.rewards.reader import reader  # noqa: F401 (named like its module, which would hide it)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": [
            "FunctionReward", "GoldReward", "Judgement", "RandomReward", "Reward", "as_reward", "sentence_ends",
            "to_trl",
        ],
        "bradley_terry": ["BradleyTerry", "calibration_error", "fit_temperature", "score_pairs"],
        "by_token": ["ByToken"],
        "comparator": ["Comparator", "PairReward"],
        "hybrid": ["Hybrid", "MixedSupervision", "Veto", "audit", "weigh_rules"],
        "implicit": ["ImplicitReward"],
        "judge": ["Judge", "PairJudge"],
        "losses": ["bradley_terry_loss", "ordinal_loss", "plackett_luce_loss"],
        "model": ["RewardModel"],
        "process": ["ProcessReward", "aggregate_steps", "step_tokens"],
        "rankings": ["PlackettLuce"],
        "ratings": ["Binary", "Ordinal", "Regression"],
        "reader": ["reader"],
        "rubric": ["Rubric"],
        "rules": [
            "Check", "Rule", "RuleReward", "asked", "contains", "ends_with", "has_form", "prompt_contains",
            "repeats", "words_over",
        ],
        "shelf": ["shelf"],
        "stages": ["Stages"],
        "vector": ["Gated", "MultiAspect"],
        "verdicts": ["read_faults", "write_faults"],
        "verifiable": ["Verifiable", "verified"],
    },
)  # fmt: skip
