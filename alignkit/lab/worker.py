"""One notebook, one seed, one process: inject the parameters, execute, clean, store.

Started by `alignkit.lab.sweep` as `python -m alignkit.lab.worker JOB` (a Job as JSON). Progress and the
outcome go to standard output, one JSON object a line; everything else goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.parameterize import parameterize_notebook

from alignkit import claims
from alignkit.claims import fingerprint
from alignkit.errors import AlignkitError
from alignkit.files import write_atomic
from alignkit.lab.clean import EPILOGUE, INJECTED, clean, parameters_of
from alignkit.lab.job import Job

# Two processes with one thread each beat one process with two threads, and one thread is what results are
# timed on.
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
} | {"TOKENIZERS_PARALLELISM": "false"}
COLORS = re.compile(r"\x1b\[[0-9;]*m")


class Execution:
    """Runs a notebook's cells in a kernel of this interpreter and keeps count of them."""

    def __init__(self, notebook: nbformat.NotebookNode, job: Job, report: Callable[..., None]) -> None:
        self.notebook, self.job, self.report = notebook, job, report
        self.cell: nbformat.NotebookNode | None = None  # the one being executed
        self.number = 0  # of that cell, among the notebook's own code cells, from 1
        self.seconds = 0.0
        self._cell_started = 0.0

    def run(self) -> None:
        deadline = time.monotonic() + self.job.timeout
        kernel = AsyncKernelManager(
            kernel_name="python3",
            # no folders to search: the only python3 left is the one of this interpreter
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        )
        client = NotebookClient(
            self.notebook,
            km=kernel,
            timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
            resources={"metadata": {"path": str(Path(self.job.notebook).resolve().parent)}},
            record_timing=False,
            shutdown_kernel="immediate",  # a busy kernel takes seconds to leave politely
            on_cell_execute=self._before,
            on_cell_executed=self._after,
        )
        client.execute(cleanup_kc=True)

    def _before(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.cell = cell
        self._cell_started = time.monotonic()
        self.number += not _is_ours(cell)

    def _after(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        if not _is_ours(cell):
            self.seconds += time.monotonic() - self._cell_started
            self.report(event="cell", done=self.number)


def _is_ours(cell: nbformat.NotebookNode) -> bool:
    """Whether the cell was added for the run."""
    return bool({INJECTED, EPILOGUE} & set(cell.metadata.get("tags", [])))


def prepare(job: Job) -> nbformat.NotebookNode:
    """The notebook with the run's parameters injected, and a last cell that makes sure a result is stored."""
    notebook = nbformat.read(job.notebook, as_version=4)
    known = parameters_of(notebook, Path(job.notebook).name)
    unknown = [name for name in job.values if name not in known]
    if unknown:
        raise AlignkitError(
            f"{Path(job.notebook).name}: the parameters cell does not set {', '.join(unknown)}; "
            f"it sets {', '.join(known) or 'nothing'}"
        )
    notebook.metadata["papermill"] = {}  # papermill notes its parameters there,
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])  # and looks for its cells in all tags
    notebook = parameterize_notebook(notebook, job.values, kernel_name="python3", language="python")
    last = nbformat.v4.new_code_cell(
        f"from alignkit import claims\nclaims.finish({job.stem!r}, {job.seed!r}, {job.profile!r})",
        metadata={"tags": [EPILOGUE]},
    )
    notebook.cells.append(last)
    return notebook


def work(job: Job, report: Callable[..., None]) -> dict[str, Any]:
    """Run the job; returns what happened: status, seconds, and for a failure which cell and why."""
    try:
        notebook = prepare(job)
    except AlignkitError as error:
        return failure(error)
    execution = Execution(notebook, job, report)
    report(event="start", cells=sum(c.cell_type == "code" and not _is_ours(c) for c in notebook.cells))
    with tempfile.TemporaryDirectory(prefix="alignkit-") as scratch:
        # the result stays here until all cells have run: a failed run must not replace a good one
        os.environ.update(ONE_THREAD, ALIGNKIT_NOTEBOOK=job.notebook, ALIGNKIT_RESULTS=scratch)
        try:
            execution.run()
            store(job, execution, claims.result_path(scratch, job.stem, job.profile, job.seed))
        except (CellExecutionError, CellTimeoutError, DeadKernelError, AlignkitError) as error:
            save_partial(job, execution)
            return failure(error, execution)
    return {"status": "done", "seconds": round(execution.seconds, 1)}


def store(job: Job, execution: Execution, written: Path) -> None:
    """Store the cleaned copy, and then the result: where there is a result, its copy is there too."""
    result = claims.read_result(written)
    result["seconds"] = round(execution.seconds, 1)
    if job.parameters:
        result["parameters"] = job.parameters
    cleaned = clean(execution.notebook, job.values)
    # what was executed, even if the file was edited meanwhile
    result["fingerprint"]["notebook"] = fingerprint.code_hash(cleaned)
    write_atomic(job.executed, nbformat.writes(cleaned) + "\n")
    write_atomic(job.result, claims.dumps(result))
    job.failed.unlink(missing_ok=True)


def save_partial(job: Job, execution: Execution) -> None:
    """Keep the cells up to the failure; not being able to write them must not hide the failure itself."""
    try:
        write_atomic(job.failed, nbformat.writes(clean(execution.notebook, job.values)) + "\n")
    except AlignkitError as error:
        print(error, file=sys.stderr)


def failure(error: Exception, execution: Execution | None = None) -> dict[str, Any]:
    """What went wrong, where, in the words of the notebook's author."""
    name, message = type(error).__name__, str(error)
    if isinstance(error, CellExecutionError):
        name, message = error.ename, COLORS.sub("", error.evalue)
    elif isinstance(error, CellTimeoutError):
        name, message = "Timeout", f"not done after {execution.job.timeout:g} s; allow more with --timeout"
    elif isinstance(error, DeadKernelError):
        name, message = "DeadKernelError", "the kernel died; often it ran out of memory (try --jobs 1)"
    found = {"status": "failed", "exception": name, "message": message}
    in_a_cell = not isinstance(error, AlignkitError) and execution and execution.cell
    if in_a_cell and not _is_ours(execution.cell):
        found |= {"cell": execution.number, "line": first_line(execution.cell.source)}
    return found | {"seconds": round(execution.seconds, 1) if execution else 0.0}


def first_line(source: str) -> str:
    """The first line of code in a cell, comments left out if there is anything else."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith("#")]
    return (code or lines or [""])[0]


def main() -> None:
    # Own the standard output before a kernel can inherit it and write into the middle of a message.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(**event: Any) -> None:
        print(json.dumps(event), file=channel, flush=True)

    report(event="end", **work(Job(**json.loads(sys.argv[1])), report))


if __name__ == "__main__":
    main()
