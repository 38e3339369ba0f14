"""The check-up of a preference data set before anyone trains on it."""

from alignkit.evaluation.diagnosis.pairs import PairSet, read_pairs
from alignkit.evaluation.diagnosis.report import Diagnosis, diagnose

__all__ = ["Diagnosis", "PairSet", "diagnose", "read_pairs"]
