"""One notebook, one seed, one kernel: set the parameters, execute, clean, store.

The kernel is a process of its own, so the sweep can drive several from its threads.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from alignkit import claims
from alignkit.claims import fingerprint
from alignkit.errors import AlignkitError, printable
from alignkit.files import write_atomic
from alignkit.lab.clean import assignments, clean, set_parameters

# Two processes with one thread each beat one process with two threads, and one thread is what results are timed on.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
QUIET = {"TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # warnings of no use to a reader


@dataclass(frozen=True)
class Job:
    """One notebook at one seed, what it makes kept in the folder `out`. `parameters`: those beyond seed and profile;
    `timeout`: seconds in all."""

    notebook: Path
    seed: int
    profile: str
    out: Path
    timeout: float
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        return self.notebook.stem

    @property
    def name(self) -> str:
        """What the job is called in messages."""
        return f"{self.stem} seed {self.seed}"

    @property
    def result(self) -> Path:
        return claims.result_path(self.out / "results", self.stem, self.profile, self.seed)

    @property
    def executed(self) -> Path:
        """Where the executed copy goes."""
        return self.out / self.stem / f"{self.profile}-seed{self.seed}.ipynb"

    @property
    def failed(self) -> Path:
        """Where the partial copy of a failed run goes."""
        return self.executed.with_suffix(".failed.ipynb")


class Execution:
    """Runs one job's cells in a kernel of this interpreter and keeps count of them.

    `report(cells done, cells in all)` is called at the start and after each cell.
    """

    def __init__(self, job: Job, report: Callable[[int, int], None] = lambda done, cells: None) -> None:
        self.job, self.report = job, report
        self.notebook: nbformat.NotebookNode | None = None
        self.cell: nbformat.NotebookNode | None = None  # the one being executed
        self.number = 0  # of that cell, among the code cells, from 1
        self.seconds = 0.0
        self.stopped = False
        self._cell_started = 0.0
        self._kernel: AsyncKernelManager | None = None

    def work(self) -> dict[str, Any]:
        """Run the job; returns what happened: status, seconds, and for a failure which cell and why."""
        try:
            self.notebook = prepare(self.job)
            with tempfile.TemporaryDirectory(prefix="alignkit-") as scratch:
                # the result stays here until all cells have run: a failed run must not replace a good one
                self.run(scratch)
                self.store(claims.result_path(scratch, self.job.stem, self.job.profile, self.job.seed))
        except (CellExecutionError, CellTimeoutError, DeadKernelError, AlignkitError) as error:
            return self.failure(error)
        return {"status": "done", "seconds": round(self.seconds, 1)}

    def run(self, results: str) -> None:
        """Execute all cells; the notebook's ledger writes into the folder `results`."""
        deadline = time.monotonic() + self.job.timeout
        # no folders to search: the only python3 left is the one of this interpreter
        self._kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        client = NotebookClient(
            self.notebook,
            km=self._kernel,
            timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # a reader is not helped by how the kernel talks to us
            shutdown_kernel="immediate",  # a busy kernel takes seconds to leave politely
            on_cell_execute=self._before,
            on_cell_executed=self._after,
        )
        told = {"ALIGNKIT_NOTEBOOK": str(self.job.notebook), "ALIGNKIT_RESULTS": results}
        self.report(0, self._cells())
        folder = str(self.job.notebook.resolve().parent)
        client.execute(cleanup_kc=True, cwd=folder, env={**os.environ, **dict.fromkeys(THREADS, "1"), **QUIET, **told})

    def stop(self) -> None:
        """End the kernel and what it started; `work` then returns a failure and leaves nothing behind."""
        self.stopped = True
        process = getattr(self._kernel and self._kernel.provisioner, "process", None)
        if process is not None and process.poll() is None:
            # on POSIX a kernel leads a process group of its own
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()

    def _cells(self) -> int:
        return sum(cell.cell_type == "code" for cell in self.notebook.cells)

    def _before(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        if self.stopped:  # before the kernel was there to be ended
            raise AlignkitError("interrupted")
        self.cell = cell
        self.number += 1
        self._cell_started = time.monotonic()

    def _after(self, **_: Any) -> None:
        self.seconds += time.monotonic() - self._cell_started
        self.report(self.number, self._cells())

    def store(self, written: Path) -> None:
        """Store the cleaned copy, and then the result: where there is a result, its copy is there too.

        `written` is where the ledger left its result. A notebook without claims gets one as well: else it could not be
        told later that it was done.
        """
        job, cleaned = self.job, clean(self.notebook)
        if not written.exists() and claims.of_notebook(job.stem):
            raise AlignkitError(f"{job.stem} has claims but did not close its ledger; end it with ledger.close()")
        ledger = claims.Ledger(job.stem, job.seed, job.profile)
        result = claims.read_result(written) if written.exists() else ledger.result(job.notebook)
        result["seconds"] = round(self.seconds, 1)
        if job.parameters:
            result["parameters"] = job.parameters
        # what was executed, even if the file was edited meanwhile
        result["fingerprint"] |= fingerprint.fingerprint_of(fingerprint.code_of(cleaned))
        write_atomic(job.executed, nbformat.writes(cleaned) + "\n")
        write_atomic(job.result, claims.dumps(result))
        job.failed.unlink(missing_ok=True)

    def failure(self, error: Exception) -> dict[str, Any]:
        """What went wrong, where, in the words of the notebook's author; the cells up to there are kept."""
        name, message = type(error).__name__, str(error)
        if isinstance(error, CellExecutionError):
            name, message = error.ename, error.evalue
        elif isinstance(error, CellTimeoutError):
            name, message = "Timeout", f"not done after {self.job.timeout:g} s; allow more with --timeout"
        elif isinstance(error, DeadKernelError):
            message = "the kernel died; often it ran out of memory (try --jobs 1)"
        found = {"status": "failed", "exception": name, "message": printable(message)}
        if self.cell is not None and not isinstance(error, AlignkitError):
            lines = [line.strip() for line in self.cell.source.splitlines() if line.strip()]
            code = (line for line in lines if not line.startswith("#"))
            found |= {"cell": self.number, "line": next(code, lines[0])}
        if self.notebook is not None and not self.stopped:
            try:
                write_atomic(self.job.failed, nbformat.writes(clean(self.notebook)) + "\n")
            except AlignkitError as full:  # not being able to write them must not hide the failure itself
                found["message"] += f" (and {full})"
        return found | {"seconds": round(self.seconds, 1)}


def prepare(job: Job) -> nbformat.NotebookNode:
    """The notebook with the run's parameters."""
    notebook, name = fingerprint.read_notebook(job.notebook), job.notebook.name
    cell = next((cell for cell in notebook.cells if fingerprint.has_tag(cell, "parameters")), None)
    if cell is None:
        raise AlignkitError(
            f"{name} has no cell tagged 'parameters'; tag the code cell that sets seed and profile "
            "(in JupyterLab: property inspector, Cell Tags)"
        )
    try:
        known = [parameter for parameter, _ in assignments(cell.source)]
    except SyntaxError as error:
        raise AlignkitError(f"{name}: the parameters cell must be plain Python ({error})") from error
    values = {"seed": job.seed, "profile": job.profile, **job.parameters}
    unknown = [parameter for parameter in values if parameter not in known]
    if unknown:
        raise AlignkitError(
            f"{name}: the parameters cell does not set {', '.join(unknown)}; it sets {', '.join(known) or 'nothing'}"
        )
    cell.source = set_parameters(cell.source, values)
    return notebook
