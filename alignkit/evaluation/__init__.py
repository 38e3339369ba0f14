"""Follow-up: charts, the measurement core, and the check-up of a preference data set.

The check-up is imported when first used: a notebook that checks no data set doesn't depend on its code.
"""

from importlib import import_module

from alignkit.evaluation.chart import Chart, chart, measure
from alignkit.evaluation.core import (
    MIN_ESS,
    Frontier,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_weights,
    beta_for_kl,
    frontier,
    kl_bound,
    kl_of_best_of_n,
    sequence_kl,
)
from alignkit.evaluation.side_by_side import BUDGETS, side_by_side

_DIAGNOSIS = ("diagnose", "read_pairs")

__all__ = [
    "BUDGETS",
    "MIN_ESS",
    "Chart",
    "Frontier",
    "best_of_n_curve",
    "best_of_n_kl",
    "best_of_n_weights",
    "beta_for_kl",
    "chart",
    "diagnose",
    "frontier",
    "kl_bound",
    "kl_of_best_of_n",
    "measure",
    "read_pairs",
    "sequence_kl",
    "side_by_side",
]


def __getattr__(name: str):
    if name in _DIAGNOSIS:
        return getattr(import_module("alignkit.evaluation.diagnosis"), name)
    raise AttributeError(f"module 'alignkit.evaluation' has no attribute {name!r}")
