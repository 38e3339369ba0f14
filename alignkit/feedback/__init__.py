"""Phase 1, diagnosis: who says what about which completions, and how far to trust it.

Names are imported when first used: a notebook depends only on the code that it runs.
"""

import lazy_loader

from alignkit.feedback.compare import compare  # noqa: F401 (named like its module, which would hide it)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "aggregate": ["alpha", "combine", "dawid_skene", "majority", "skills", "votes"],
        "agreement": ["bayes_ceiling", "gold_agreement", "kappa", "pair_accuracy", "raw_agreement", "swap"],
        "annotator": ["Annotator"],
        "answers": ["draw_groups", "one_by_one"],
        "ask": ["choose_pairs", "uncertainty"],
        "bias": ["Leaning", "length_leaning", "position_leaning"],
        "compare": ["compare", "draw_pairs", "label", "shuffle_labels"],
        "cost": ["bits", "cost"],
        "critiques": ["correct", "critique", "demonstrate", "faults", "without_sentence"],
        "groups": ["Crowd", "Group", "crowd", "label_over_time"],
        "marks": ["mark_steps", "verify"],
        "models": ["ModelAnnotator", "label_by_rule", "under", "with_principle"],
        "people": ["expected_agreement", "population", "with_agreement"],
        "pooled": ["borda", "bradley_terry_limit", "cycles", "win_matrix"],
        "rankings": ["rank"],
        "ratings": ["check_ratings", "rate", "rate_aspects", "standardize", "thumbs"],
        "rollouts": ["rollout_labels"],
    },
)  # fmt: skip
