"""Executes notebooks over seeds and profiles: in parallel, resumable, one kernel and one thread each.

The notebook is the experiment; this only runs it with other parameters and keeps what comes out:
`OUT/<stem>/<profile>-seed<seed>.ipynb` (the executed copy) and
`OUT/results/<stem>/<profile>-seed<seed>.json`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from tqdm import tqdm

from alignkit import claims
from alignkit.claims import fingerprint
from alignkit.claims.ledger import SHOWN_PROFILE, SHOWN_SEED
from alignkit.errors import AlignkitError, check_choice, check_positive, printable
from alignkit.files import NOTEBOOKS, check_folder, choose, write_atomic
from alignkit.lab.clean import with_outputs
from alignkit.lab.worker import Execution, Job


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook at one seed. `status`: done, skipped (done before, unchanged) or failed."""

    job: Job
    status: str
    seconds: float = 0.0
    exception: str = ""
    message: str = ""
    cell: int | None = None
    line: str = ""

    def describe(self) -> str:
        """One line for a person: the time, or where it failed and why."""
        if self.status == "failed":
            where = f" in code cell {self.cell} ({self.line})" if self.cell else ""
            return f"failed{where}: {self.exception}: {self.message}"
        return "done before, unchanged" if self.status == "skipped" else f"done in {self.seconds:.1f} s"


# --- what to run


def find(names: Iterable[str | Path] = (), folder: str | Path | None = None) -> list[Path]:
    """Notebooks by stem, number ("02") or path; without names, all numbered ones in `folder`.

    Default: the current folder, if it has some (those of `alignkit start`), else the project's.
    """
    numbered = sorted(Path(folder or ".").resolve().glob("[0-9]*.ipynb"))
    if folder is None and not numbered:
        folder, numbered = NOTEBOOKS, sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    paths = list(dict.fromkeys(_find_one(str(name), numbered) for name in names)) or numbered
    if not paths:
        raise AlignkitError(f"there are no numbered notebooks in {folder}")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        raise AlignkitError("two of the notebooks have the same name; run them with different --out folders")
    return paths


def _find_one(name: str, numbered: list[Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    stem = choose([name], [path.stem for path in numbered], "notebook, or path of one,")[0]
    return next(path for path in numbered if path.stem == stem)


def _goes_in_place(profile: str, seed: int) -> bool:
    """Standard runs of seed 0 are the committed notebooks; thorough runs of evidence seeds are the evidence.

    (A thorough run of seed 0 is neither: its outputs would contradict the committed parameters cell.)
    """
    if profile == claims.EVIDENCE_PROFILE:
        return seed in claims.EVIDENCE_SEEDS
    return (profile, seed) == (SHOWN_PROFILE, SHOWN_SEED)


# --- running it


def run(
    notebooks: Iterable[str | Path] = (),
    profile: str = SHOWN_PROFILE,
    seeds: Sequence[int] = (SHOWN_SEED,),
    jobs: int = 2,
    out: str | Path = "runs",
    in_place: bool = False,
    fresh: bool = False,
    timeout: float = 1800,
    parameters: Mapping[str, Any] | None = None,
) -> list[Outcome]:
    """Execute notebooks at all seeds, `jobs` at a time; one Outcome each, failed ones included.

    `timeout` is in seconds per notebook. With `in_place`, evidence is recorded, and the executed notebook of seed 0
    replaces its source. KeyboardInterrupt ends the kernels and leaves finished jobs to be skipped.
    """
    parameters = dict(parameters or {})
    check_choice("run", "profile", profile, claims.PROFILES)
    check_positive("run", jobs=jobs, timeout=timeout)
    if in_place and parameters:
        raise AlignkitError("--in-place with --param would store results that the notebook doesn't give; drop one")
    if in_place and not any(_goes_in_place(profile, seed) for seed in seeds):
        raise AlignkitError(
            f"--in-place has nothing to store of these seeds at profile {profile}: it takes seed 0 at profile standard "
            "(the notebook) and seeds 1..99 at profile thorough (the evidence)"
        )
    paths, out = find(notebooks), Path(out).resolve()
    check_folder(out)  # before anything runs for a minute
    todo = [Job(path, seed, profile, out, timeout, parameters) for path in paths for seed in seeds]
    sweep = _Sweep(fresh, in_place, len(todo))
    with sweep.bar, ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(sweep.one, job) for job in todo]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C, above all
            pool.shutdown(wait=False, cancel_futures=True)
            with _no_second_interrupt():
                sweep.stop()
                pool.shutdown(wait=True)
            raise


@contextmanager
def _no_second_interrupt() -> Iterator[None]:
    """Whoever presses Ctrl-C twice must not leave kernels behind."""
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM) if ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Sweep:
    """What the threads of one `run` share: its settings, its running kernels, and how it shows itself.

    A bar where a person is watching, else (a log, CI) a line when a notebook starts and one when it ends.
    """

    def __init__(self, fresh: bool, in_place: bool, total: int) -> None:
        self.fresh, self.in_place = fresh, in_place
        self.bar = tqdm(total=total, desc="notebooks", disable=None, file=sys.stderr, leave=False)
        self._executions: list[Execution] = []
        self._ended = 0
        self._stopping = False
        self._lock = threading.Lock()  # several notebooks report at a time

    def one(self, job: Job) -> Outcome:
        """See one job through, whatever happens to it."""
        try:
            if not self.fresh and done_before(job):
                refresh_prose(job)
                outcome = Outcome(job, "skipped", seconds=claims.read_result(job.result)["seconds"])
            else:
                outcome = Outcome(job, **self._work(job))
            if outcome.status != "failed" and self.in_place and _goes_in_place(job.profile, job.seed):
                put_in_place(job, claims.RESULTS)
        except AlignkitError as error:  # a full disk, say: the others go on
            outcome = Outcome(job, "failed", exception=type(error).__name__, message=str(error))
        told = "failed" if outcome.status == "failed" else outcome.describe()
        with self._lock:
            self._ended += 1
            self.bar.update()
            if not self._stopping:
                self._say(f"[{self._ended}/{self.bar.total}] {job.name}: {told}")
        return outcome

    def _work(self, job: Job) -> dict[str, Any]:
        """Execute the notebook; returns its outcome's fields."""
        execution = Execution(job, partial(self._report, job.name))
        with self._lock:
            execution.stopped = self._stopping
            self._executions.append(execution)
        return execution.work()

    def _report(self, name: str, done: int, cells: int) -> None:
        with self._lock:
            if not self.bar.disable:
                self.bar.set_postfix_str(f"{name}: cell {done}/{cells}")
            elif done == 0:
                self._say(f"      {name}: {cells} code cells")

    def _say(self, line: str) -> None:
        tqdm.write(printable(line), file=sys.stderr)
        sys.stderr.flush()

    def stop(self) -> None:
        """End all kernels; what they left of unfinished notebooks is taken away by those who ran them."""
        with self._lock:
            self._stopping = True
            for execution in self._executions:
                execution.stop()


# --- what was done before


def done_before(job: Job) -> bool:
    """Whether result and executed copy are there and nothing they depend on has changed since."""
    if not job.executed.is_file():
        return False
    try:
        result = claims.read_result(job.result)
    except AlignkitError:
        return False  # missing or damaged: run it again
    rules = {claim_id: claim.rule_hash for claim_id, claim in claims.of_notebook(job.stem).items()}
    # a notebook that shows recorded evidence is out of date when there is other evidence now
    shown = result["fingerprint"].get("evidence")
    return (
        result["rules"] == rules
        and result.get("parameters", {}) == job.parameters
        and (shown is None or shown == claims.evidence_hash(job.stem))
        and not fingerprint.stale_reasons(result, job.notebook)
    )


def refresh_prose(job: Job) -> None:
    """Bring an executed copy's prose up to date: its code is unchanged, so its outputs still belong to it."""
    executed = fingerprint.read_notebook(job.executed)
    before = nbformat.writes(executed)
    now = nbformat.writes(with_outputs(fingerprint.read_notebook(job.notebook), executed))
    if now != before:
        write_atomic(job.executed, now + "\n")


def put_in_place(job: Job, results: Path) -> None:
    """Make a finished job the committed one: its result into `results`, what is shown over its notebook as well."""
    write_atomic(claims.result_path(results, job.stem, job.profile, job.seed), job.result.read_bytes())
    if job.profile != claims.EVIDENCE_PROFILE:
        write_atomic(job.notebook, job.executed.read_bytes())
