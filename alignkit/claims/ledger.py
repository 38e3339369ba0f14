"""The ledger: what the notebooks claim, how a claim could fail, and what the recorded runs say.

`data/claims.yaml` registers every claim with its rule before evidence is collected. A notebook opens the ledger,
records one value per claim and closes it; the runner stores one JSON file per notebook, profile and seed. Verdicts are
computed anew from the stored values, over the evidence seeds (1..99) of profile `thorough`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.claims import fingerprint, statistics
from alignkit.claims.register import Claim, load, of_notebook
from alignkit.errors import AlignkitError, DataError, check_choice
from alignkit.files import DATA, NOTEBOOKS, write_atomic

if TYPE_CHECKING:
    from alignkit.claims.table import ClaimsTable

PROFILES = ("smoke", "standard", "thorough")
EVIDENCE_PROFILE = "thorough"
PLANNED_SEEDS = 10  # for which the power is told
EVIDENCE_SEEDS = range(1, 100)  # 0 is shown, 100 and above are for tuning
SHOWN_PROFILE, SHOWN_SEED = "standard", 0  # what the committed notebooks are executed with
RESULTS = DATA / "results"


# --- inside a notebook


def open(notebook: str, seed: int = 0, profile: str = "standard") -> Ledger:  # noqa: A001 - claims.open reads well
    """The ledger of one run of a notebook (named by its stem, "02_reward_modeling")."""
    check_choice("claims.open", "profile", profile, PROFILES)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise AlignkitError(f"seed is {seed!r}; it must be a whole number from 0 up")
    running = os.environ.get("ALIGNKIT_NOTEBOOK")
    if running and Path(running).stem != notebook:
        raise AlignkitError(f"claims.open(notebook={notebook!r}) is called in {running}; give that file's stem")
    return Ledger(notebook, seed, profile)


class Ledger:
    """One run's values. Made by `claims.open`; then `record`, `series`, `uses`, `table`, and last `close`."""

    def __init__(self, notebook: str, seed: int, profile: str) -> None:
        self.notebook, self.seed, self.profile = notebook, seed, profile
        self.claims = of_notebook(notebook)
        self.values: dict[str, Any] = {}
        self.curves: dict[str, Any] = {}
        self._world: dict[str, str] = {}
        self._models: dict[str, Path] = {}
        self._read_evidence = False
        self._started = time.monotonic()

    def record(self, claim_id: str, value: Any) -> None:
        """Store this run's value: a finite number, or for a population claim a list of (x, y) points."""
        if claim_id not in self.claims:
            has = ", ".join(self.claims) or "none yet"
            where = f"notebook {self.notebook} in data/claims.yaml"
            raise AlignkitError(f"no claim {claim_id!r} for {where}; it has: {has}")
        kind, where = self.claims[claim_id].kind, f"claim {claim_id!r}"
        found = _points(value, where) if kind == "population" else _finite(value, where)
        if kind == "identity" and found < 0:
            raise AlignkitError(f"{where}: value is {found}; an identity records its largest absolute error")
        self.values[claim_id] = found

    def series(self, name: str, data: Any) -> None:
        """Store a curve or table to be drawn later as recorded (numbers keep six significant digits)."""
        self.curves[str(name)] = _plain(data, f"series {name!r}")

    def uses(self, world: Any = None, models: Mapping[str, str | Path] | None = None) -> None:
        """Say which world (or list of worlds) and which model folders this run depends on."""
        worlds = world if isinstance(world, (list, tuple)) else [world]
        self._world |= dict(fingerprint.full_version(item) for item in worlds if item is not None)
        for name, path in (models or {}).items():
            fingerprint.model_hash(path)  # a wrong path shows here and not after the last cell
            self._models[str(name)] = Path(path)

    def recorded(self, name: str) -> dict[int, Any]:
        """{seed: series} from the recorded evidence runs of this notebook; {} if there are none."""
        self._read_evidence = True
        found = evidence(self.notebook)
        return {result["seed"]: result["series"][name] for result in found if name in result["series"]}

    def table(self) -> ClaimsTable:
        """What was claimed, this run's values, what recorded seeds say. At `smoke` no verdict is shown."""
        from alignkit.claims.table import ClaimsTable

        self._read_evidence = True
        rows = _summary_rows(self.claims.values(), evidence(self.notebook))
        return ClaimsTable(rows, self.values, verdicts=self.profile != "smoke")

    def close(self) -> None:
        """Check that every registered claim was recorded; write the result where the runner asked for it.

        Without a runner (in an open notebook) nothing is written.
        """
        missing = [claim_id for claim_id in self.claims if claim_id not in self.values]
        if missing:
            raise AlignkitError(
                f"{self.notebook} did not record: {', '.join(missing)}. "
                "Call ledger.record for each, or take the claim out of data/claims.yaml"
            )
        folder = os.environ.get("ALIGNKIT_RESULTS")
        if folder:
            code = os.environ.get("ALIGNKIT_NOTEBOOK") or NOTEBOOKS / f"{self.notebook}.ipynb"
            write_atomic(result_path(folder, self.notebook, self.profile, self.seed), dumps(self.result(code)))

    def result(self, code: str | Path) -> dict[str, Any]:
        """What is stored of the run; `code` is the notebook's file."""
        made_from = {
            **fingerprint.fingerprint_of(fingerprint.read_code(code)),
            "world": self._world,
            "model": {name: fingerprint.model_hash(path) for name, path in self._models.items()},
            "model_files": {name: fingerprint.portable(path) for name, path in self._models.items()},
        }
        if self._read_evidence and self.profile != EVIDENCE_PROFILE:
            made_from["evidence"] = evidence_hash(self.notebook)
        return {
            "notebook": self.notebook,
            "profile": self.profile,
            "seed": self.seed,
            "values": self.values,
            "series": self.curves,
            "rules": {claim_id: self.claims[claim_id].rule_hash for claim_id in self.values},
            "fingerprint": made_from,
            **fingerprint.git_state(),
            "versions": fingerprint.versions(),
            "processor": fingerprint.processor(),
            "seconds": round(time.monotonic() - self._started, 1),
        }


# --- recorded evidence


def result_path(folder: str | Path, notebook: str, profile: str, seed: int) -> Path:
    return Path(folder) / notebook / f"{profile}-seed{seed}.json"


def read_result(path: Path) -> dict[str, Any]:
    """One stored result. Raises DataError naming the file if it is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for key in ("notebook", "profile", "seed", "values", "series", "rules", "fingerprint"):
            result[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a result of a run ({error!r}); delete it and run again") from error
    return result


def evidence(notebook: str, results: str | Path | None = None) -> list[dict[str, Any]]:
    """The results of a notebook that count, by seed: profile `thorough`, seeds 1..99, no other parameters."""
    files = Path(results or RESULTS).glob(f"{notebook}/{EVIDENCE_PROFILE}-seed*.json")
    found = [read_result(path) for path in files]
    counting = [r for r in found if r["seed"] in EVIDENCE_SEEDS and not r.get("parameters")]
    return sorted(counting, key=lambda result: result["seed"])


def evidence_hash(notebook: str) -> str:
    """Changes whenever the recorded evidence that a notebook shows changes."""
    found = [[result["seed"], result["values"], result["series"]] for result in evidence(notebook)]
    return fingerprint.sha(json.dumps(found, sort_keys=True))


def summarize(results: str | Path | None = None, paths: Mapping[str, str | Path] | None = None) -> list[dict[str, Any]]:
    """One row per registered claim: evidence over seeds, verdict, whether it survives Holm's correction and Benjamini
    and Hochberg's (`bh`), what is stale.

    `mean` is that of `statistics.estimate`. `shown` is the committed notebook's own value, `pi_low` and `pi_high`
    where one more seed's value lies with 95 % probability, `power` the probability that `PLANNED_SEEDS` new seeds
    decide the claim if the recorded mean and spread are the true ones. `stale` is False or a list of reasons;
    `paths` says where notebooks are (by stem) that are not among the project's.
    """
    registered: dict[str, list[Claim]] = {}
    for claim in load().values():
        registered.setdefault(claim.notebook, []).append(claim)
    rows = []
    for notebook, own in registered.items():
        path = result_path(results or RESULTS, notebook, SHOWN_PROFILE, SHOWN_SEED)
        shown = read_result(path)["values"] if path.is_file() else {}
        for row in _summary_rows(own, evidence(notebook, results), (paths or {}).get(notebook)):
            value = shown.get(row["id"])
            row["shown"] = None if value is None else statistics.one_run(row["kind"], value)
            rows.append(row)
    _correct(rows)
    return rows


def _summary_rows(claims: Iterable[Claim], results: list[dict], path: str | Path | None = None) -> list[dict[str, Any]]:
    """The rows of one notebook's claims, without the corrections, which concern the whole ledger."""
    reasons = {result["seed"]: fingerprint.stale_reasons(result, path) for result in results}
    return [_summary_row(claim, results, reasons) for claim in claims]


def _summary_row(claim: Claim, results: list[dict], reasons: dict[int, list[str]]) -> dict[str, Any]:
    results = [result for result in results if claim.id in result["values"]]
    row = {name: getattr(claim, name) for name in ("id", "notebook", "phase", "dimension", "statement")}
    row |= {"source": list(claim.source), "kind": claim.kind, "rule": claim.rule.words(), "n_seeds": len(results)}
    row |= dict.fromkeys(("mean", "ci_low", "ci_high", "pi_low", "pi_high", "power", "p_value"))
    row |= {"verdict": "unmeasured", "survives_holm": False, "bh": False}
    row["processors"] = sorted({result["processor"] for result in results if result.get("processor")})
    row["stale"] = _stale(claim, results, reasons)
    if results:
        values = [result["values"][claim.id] for result in results]
        found = statistics.estimate(claim.kind, values)
        row |= {"mean": found.value, "ci_low": found.low, "ci_high": found.high}
        row["pi_low"], row["pi_high"] = statistics.prediction(claim.kind, values)
        row["power"] = statistics.power(claim.kind, claim.rule, values, PLANNED_SEEDS)
        row["verdict"] = statistics.verdict(claim.rule, found)
        row["p_value"] = statistics.p_value(claim.rule, found) if claim.kind in statistics.FINDINGS else None
    return row


def _stale(claim: Claim, results: list[dict[str, Any]], reasons: dict[int, list[str]]) -> bool | list[str]:
    """Each reason once, with the seeds it concerns if it doesn't concern all."""
    seeds: dict[str, list[int]] = {}
    for result in results:
        changed = ["rule changed since the run"] if result["rules"].get(claim.id) != claim.rule_hash else []
        for reason in reasons[result["seed"]] + changed:
            seeds.setdefault(reason, []).append(result["seed"])
    return [
        reason if len(hit) == len(results) else f"{reason} (seed {', '.join(map(str, hit))})"
        for reason, hit in seeds.items()
    ] or False


def _correct(rows: list[dict[str, Any]]) -> None:
    """Both corrections over all findings with evidence; one that can't be tested counts as p = 1."""
    tested = [row for row in rows if row["kind"] in statistics.FINDINGS and row["n_seeds"]]
    p_values = [1.0 if row["p_value"] is None else row["p_value"] for row in tested]
    for field, method in (("survives_holm", "holm"), ("bh", "fdr_bh")):
        for row, p in zip(tested, statistics.corrected(p_values, method), strict=True):
            row[field] = p < 0.05 and row["verdict"] in ("reproduced", "contradicted")


# --- small conversions


def _finite(value: Any, where: str) -> float:
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise AlignkitError(f"{where}: value is {value!r}; record one number (or float(...) of it)")
    if not math.isfinite(value):
        raise AlignkitError(f"{where}: value is {value}; look for a division by zero or an empty mean")
    return float(value)


def _points(value: Any, where: str) -> list[list[float]]:
    value = value.tolist() if hasattr(value, "tolist") else value
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    if not is_list or not all(isinstance(point, (list, tuple)) and len(point) == 2 for point in value):
        raise AlignkitError(f"{where}: a population claim records a list of (x, y) points, one per model")
    return [[_finite(x, where), _finite(y, where)] for x, y in value]


def _plain(data: Any, where: str) -> Any:
    """Numbers, texts, lists and dicts only, as JSON has them; a number that is not finite becomes null."""
    if hasattr(data, "columns"):  # a table of pandas
        data = data.to_dict("list")
    elif hasattr(data, "tolist"):  # pandas, numpy, torch
        data = data.tolist()
    if isinstance(data, Mapping):
        return {str(key): _plain(value, where) for key, value in data.items()}
    if isinstance(data, (list, tuple, range)):
        return [_plain(value, where) for value in data]
    if isinstance(data, float):
        return float(f"{data:.6g}") if math.isfinite(data) else None
    if data is None or isinstance(data, (bool, int, str)):
        return data
    raise AlignkitError(f"{where}: can't store {type(data).__name__}; give numbers, texts, lists or dicts")


def dumps(result: Mapping[str, Any]) -> str:
    """A result as stable JSON: same content, same text."""
    return json.dumps(result, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
