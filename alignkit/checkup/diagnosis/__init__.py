"""The check-up of a preference data set before anyone trains on it."""

from alignkit.checkup.diagnosis.pairs import PairSet, read_pairs
from alignkit.checkup.diagnosis.report import Diagnosis, diagnose

__all__ = ["Diagnosis", "PairSet", "diagnose", "read_pairs"]
