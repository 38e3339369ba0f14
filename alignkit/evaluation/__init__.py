"""Follow-up: charts, the measurement core, comparisons. One way to measure each thing."""

from alignkit.evaluation.benchmark import (
    Assessment,
    assess,
    build_benchmark,
    order_flips,
    rewritten,
    ties_score,
    variance_share,
)
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
from alignkit.evaluation.drift import Watch, agreements, peek, usual_rate, watch
from alignkit.evaluation.pareto import hypervolume, non_dominated, tilted, tilted_front
from alignkit.evaluation.perturb import PERTURBATIONS, Perturbation
from alignkit.evaluation.scaling import Fit, bootstrap_fit, compare_forms, fit_form, highest, safe_kl
from alignkit.evaluation.side_by_side import BUDGETS, side_by_side

__all__ = [
    "Assessment",
    "BUDGETS",
    "Chart",
    "Fit",
    "Frontier",
    "MIN_ESS",
    "PERTURBATIONS",
    "Perturbation",
    "Watch",
    "agreements",
    "assess",
    "best_of_n_curve",
    "best_of_n_kl",
    "best_of_n_weights",
    "beta_for_kl",
    "bootstrap_fit",
    "build_benchmark",
    "chart",
    "compare_forms",
    "fit_form",
    "frontier",
    "highest",
    "hypervolume",
    "kl_bound",
    "kl_of_best_of_n",
    "measure",
    "non_dominated",
    "order_flips",
    "peek",
    "rewritten",
    "safe_kl",
    "sequence_kl",
    "side_by_side",
    "ties_score",
    "tilted",
    "tilted_front",
    "usual_rate",
    "variance_share",
    "watch",
]
