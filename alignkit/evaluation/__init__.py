"""Follow-up: charts, the measurement core, and the check-up of a preference data set.

Names are imported when first used: a notebook depends only on the code that it runs.
"""

import lazy_loader

from alignkit.evaluation.chart import chart  # noqa: F401 (named like its module, which would hide it)
from alignkit.evaluation.side_by_side import side_by_side  # noqa: F401 (named like its module, which would hide it)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "chart": ["Chart", "chart", "measure"],
        "core": [
            "Frontier", "MIN_ESS", "best_of_n_curve", "best_of_n_kl", "best_of_n_weights", "beta_for_kl",
            "frontier", "kl_bound", "kl_of_best_of_n", "sequence_kl",
        ],
        "diagnosis": ["diagnose", "read_pairs"],
        "side_by_side": ["BUDGETS", "side_by_side"],
    },
)  # fmt: skip
