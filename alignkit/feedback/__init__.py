"""Phase 1, diagnosis: who says what about which completions, and how far to trust it."""

from alignkit.feedback.agreement import (
    bayes_ceiling,
    gold_agreement,
    kappa,
    pair_accuracy,
    raw_agreement,
    swap,
)
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.compare import compare, draw_pairs, label, shuffle_labels

__all__ = [
    "Annotator",
    "bayes_ceiling",
    "compare",
    "draw_pairs",
    "gold_agreement",
    "kappa",
    "label",
    "pair_accuracy",
    "raw_agreement",
    "shuffle_labels",
    "swap",
]
