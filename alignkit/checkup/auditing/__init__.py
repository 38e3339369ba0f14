"""Side-effect screening of a reward before anything is optimized with it."""

from alignkit.checkup.auditing.report import Audit, audit, example_lines

__all__ = ["Audit", "audit", "example_lines"]
