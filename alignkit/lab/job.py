"""What the runner tells a worker, and how it starts one.

Kept out of the worker's own module: that one runs as `__main__` and must not be imported a second time.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What a worker is told. `parameters`: those beyond seed and profile; `timeout`: seconds in all."""

    notebook: str
    seed: int
    profile: str
    executed: str
    result: str
    timeout: float
    parameters: dict[str, Any]

    @property
    def stem(self) -> str:
        return Path(self.notebook).stem

    @property
    def name(self) -> str:
        """What the job is called in messages."""
        return f"{self.stem} seed {self.seed}"

    @property
    def values(self) -> dict[str, Any]:
        return {"seed": self.seed, "profile": self.profile, **self.parameters}

    @property
    def failed(self) -> Path:
        """Where the partial copy of a failed run goes."""
        return Path(self.executed).with_suffix(".failed.ipynb")


def command(job: Job) -> list[str]:
    """How to start a worker for this job."""
    return [sys.executable, "-m", "alignkit.lab.worker", json.dumps(asdict(job))]
