"""Evidence attested by value: does today's code give what the code of the recorded run gives, on one machine?

Code is never frozen for the evidence's sake. Where the hash of what a notebook reaches has changed (`fingerprint`),
one evidence seed is run twice *here*, with the code of the recorded commit (in a git worktree) and with today's. Equal
values and series attest all of the notebook's evidence. Recorded digits themselves are no yardstick: training
amplifies rounding, and on another processor some differ by more than a tenth.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkit.claims import fingerprint
from alignkit.claims.ledger import EVIDENCE_PROFILE, RESULTS, dumps, evidence, read_result, result_path
from alignkit.errors import AlignkitError
from alignkit.files import NOTEBOOKS, ROOT, choose, write_atomic

TOLERANCE = 1e-6  # relative, for values
SERIES_TOLERANCE = 1e-5  # series are stored with six significant digits
TIMEOUT = 7200  # seconds, of one run
_CHECKING_OUT = threading.Lock()  # several notebooks are attested at a time, often against one commit
UNSTABLE = ("second",)  # what is measured by a clock differs from run to run


@dataclass(frozen=True)
class Attestation:
    """One comparison. `largest`: the largest relative difference, and `where`; `status`: equal, explained (they differ
    for the `reason` that was given) or differs. `base` is the commit of the old code, `commit` that of the new."""

    base: str
    commit: str
    seed: int
    processor: str
    largest: float
    where: str
    status: str
    reason: str = ""


def differences(old: Mapping, new: Mapping) -> dict[str, float]:
    """{place: relative difference} of two results' values and series, where it exceeds the tolerance; infinite where
    only one of them has something there, or where they hold other texts."""
    found = {}
    for part, tolerance in (("values", TOLERANCE), ("series", SERIES_TOLERANCE)):
        before, now = dict(_leaves(old[part], part)), dict(_leaves(new[part], part))
        for place in before.keys() | now.keys():
            gap = _gap(before.get(place, "absent"), now.get(place, "absent"))
            if gap > tolerance and not any(word in place for word in UNSTABLE):
                found[place] = gap
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Mapping, list)):
        is_list = isinstance(value, list)
        for name, inner in enumerate(value) if is_list else value.items():
            yield from _leaves(inner, f"{place}[{name}]" if is_list else f"{place}.{name}")
    else:
        yield place, value


def _gap(before: Any, now: Any) -> float:
    if before == now:
        return 0.0
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (before, now)):
        return math.inf
    return abs(before - now) / max(1.0, abs(before), abs(now))


def changed(notebook: str) -> bool:
    """Whether any of a notebook's evidence was made, or last attested, with other code than today's."""
    return any(fingerprint.stale_reasons(result) for result in evidence(notebook))


def attest(
    notebook: str, seed: int | None = None, reason: str = "", work: str | Path = "runs/attest"
) -> Attestation | None:
    """Compare old and new code on one evidence seed (default: the first), and note the outcome in every result of the
    notebook; None if nothing changed since the last time. Both runs are kept in `work`, so that an interrupted
    attestation goes on.

    Values that differ leave the evidence stale, unless a `reason` (which mended fault changed them) is given. Raises
    AlignkitError if the code is not committed, the old commit is not in this repository, or a run fails.
    """
    results = evidence(notebook)
    if not results:
        raise AlignkitError(f"{notebook} has no recorded evidence to attest")
    if not changed(notebook):
        return None
    state = fingerprint.git_state()
    if state["commit"] is None or state["dirty"] or _uncommitted(notebook):
        raise AlignkitError("attest compares commits: commit your changes first (and run it in a git repository)")
    first = next((result for result in results if seed in (None, result["seed"])), None)
    if first is None:
        raise AlignkitError(f"{notebook} has no evidence at seed {seed}; there is {[r['seed'] for r in results]}")
    base, seed = last_commit(first), first["seed"]
    folder = Path(work).resolve() / base[:12]
    old = _run(_worktree(base, folder / "code"), notebook, seed, folder / "runs")
    new = _run(ROOT, notebook, seed, Path(work).resolve() / f"{state['commit'][:12]}" / "runs")
    differ = differences(old, new)
    where = next(iter(differ), "")
    status = "equal" if not differ else "explained" if reason else "differs"
    found = Attestation(base, state["commit"], seed, new["processor"], differ.get(where, 0.0), where, status,
                        reason if differ else "")  # fmt: skip
    for result in results:
        _note(result, found, new["fingerprint"])
    return found


def last_commit(result: Mapping[str, Any]) -> str:
    """The commit that a result stands for: of its last attestation that held, else of its run."""
    held = [item["commit"] for item in result.get("attested", []) if item["status"] != "differs"]
    return held[-1] if held else result["commit"]


def _note(result: dict[str, Any], found: Attestation, now: Mapping[str, Any]) -> None:
    """Add the attestation to a stored result; where it holds, the result stands for today's code from now on."""
    told = asdict(found)
    told["largest"] = told["largest"] if math.isfinite(found.largest) else None
    result["attested"] = [*result.get("attested", []), told]
    if found.status != "differs":
        result["fingerprint"] |= {part: now[part] for part in ("notebook", "package")}
    write_atomic(result_path(RESULTS, result["notebook"], result["profile"], result["seed"]), dumps(result))


def _uncommitted(notebook: str) -> bool:
    """Whether the notebook's code is not that of the last commit."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    committed = fingerprint.git("show", f"HEAD:{fingerprint.portable(path)}")
    if committed is None:
        return True
    import nbformat

    return fingerprint.code_of(nbformat.reads(committed, as_version=4)) != fingerprint.read_code(path)


def _worktree(commit: str, folder: Path) -> Path:
    """The project at a commit, checked out in `folder` (kept for the next notebook)."""
    with _CHECKING_OUT:
        if not (folder / "alignkit").is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            fingerprint.git("worktree", "prune")
            if fingerprint.git("worktree", "add", "--detach", "--force", str(folder), commit) is None:
                raise AlignkitError(
                    f"can't check out commit {commit[:12]}; fetch the whole history (git fetch --unshallow)"
                )
    return folder


def _run(code: Path, notebook: str, seed: int, out: Path) -> dict[str, Any]:
    """The result of a notebook as the project in `code` gives it; done before, it is read again."""
    command = tomllib.loads((code / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["alignkit"]
    module, function = command.split(":")
    arguments = ["run", notebook, "--profile", EVIDENCE_PROFILE, "--seeds", str(seed), "--jobs", "1", "--out", str(out),
                 "--timeout", str(TIMEOUT)]  # fmt: skip
    call = f"import sys; from {module} import {function}; sys.argv = ['alignkit', *{arguments!r}]; {function}()"
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run([sys.executable, "-c", call], cwd=code, capture_output=True, text=True, errors="replace",
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip
    path = result_path(out / "results", notebook, EVIDENCE_PROFILE, seed)
    if done.returncode or not path.is_file():
        last = "; ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "no message"
        raise AlignkitError(f"{notebook} seed {seed} with the code in {code} did not finish: {last}")
    result = read_result(path)
    result.setdefault("processor", fingerprint.processor())
    return result


def notebooks_with_evidence(names: Sequence[str] = ()) -> list[str]:
    """The stems of the notebooks to attest: those named (by stem or number), or all that have evidence."""
    known = sorted(folder.name for folder in Path(RESULTS).iterdir() if evidence(folder.name))
    return choose(names, known, "notebook with evidence")
