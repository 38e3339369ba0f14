"""Executes notebooks over seeds and profiles: in parallel, resumable, one process and one thread each."""

from alignkit.runner.job import Job
from alignkit.runner.sweep import (
    SHOWN_PROFILE,
    SHOWN_SEED,
    Outcome,
    done_before,
    find,
    parse_seeds,
    put_in_place,
    refresh_prose,
    run,
)

__all__ = [
    "SHOWN_PROFILE",
    "SHOWN_SEED",
    "Job",
    "Outcome",
    "done_before",
    "find",
    "parse_seeds",
    "put_in_place",
    "refresh_prose",
    "run",
]
