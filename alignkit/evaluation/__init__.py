"""Follow-up: charts, the measurement core, comparisons. One way to measure each thing."""

from alignkit.evaluation.benchmark import assess, build_benchmark, order_flips, rewritten, ties_score, variance_share
from alignkit.evaluation.compare import Chart, Scaled, chart, measure, side_by_side, spread
from alignkit.evaluation.core import (
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_weights,
    beta_for_kl,
    frontier,
    hypervolume,
    kl_bound,
    kl_of_best_of_n,
    non_dominated,
    sequence_kl,
    tilted_front,
)
from alignkit.evaluation.drift import agreements, peek, usual_rate, watch
