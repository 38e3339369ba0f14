"""Follow-up: charts, the measurement core, and the check-up of a preference data set.

Names are imported when first used: a notebook depends only on the code that it runs.
"""

import lazy_loader

from alignkit.evaluation.chart import chart  # noqa: F401 (named like its module, which would hide it)
from alignkit.evaluation.side_by_side import side_by_side  # noqa: F401 (named like its module, which would hide it)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "auditing": ["Audit", "audit"],
        "benchmark": [
            "Assessment", "assess", "build_benchmark", "order_flips", "rewritten", "ties_score", "variance_share",
        ],
        "case": ["Case"],
        "chart": ["Chart", "chart", "measure"],
        "core": [
            "Frontier", "MIN_ESS", "best_of_n_curve", "best_of_n_kl", "best_of_n_weights", "beta_for_kl",
            "frontier", "kl_bound", "kl_of_best_of_n", "sequence_kl",
        ],
        "diagnosis": ["diagnose", "read_pairs"],
        "drift": ["Watch", "agreements", "peek", "usual_rate", "watch"],
        "holdout": ["HeldOut", "fitting", "held_out", "in_words", "learning_curve", "mend", "split_by_prompt"],
        "pareto": ["hypervolume", "non_dominated", "tilted", "tilted_front"],
        "perturb": ["PERTURBATIONS", "Perturbation"],
        "scaling": ["Fit", "bootstrap_fit", "compare_forms", "fit_form", "highest", "safe_kl"],
        "side_by_side": ["BUDGETS", "side_by_side"],
        "trials": ["Trial", "trial"],
    },
)  # fmt: skip
