"""How a claim's evidence is shown: the table that closes every notebook, and the command's.

Marks carry their word, so that nothing depends on color.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from alignkit.claims.statistics import FINDINGS, one_run

MARKS = {
    "reproduced": "✓ reproduced",
    "contradicted": "✗ contradicted",
    "open": "○ open",
    "unmeasured": "– unmeasured",
}
DIGITS = "On another processor a run's digits differ, some by more than a tenth: training amplifies rounding."


def recorded_text(row: Mapping[str, Any]) -> str:
    """For example "0.62 [0.58, 0.66], 10 seeds", or a dash if nothing is recorded."""
    if not row["n_seeds"]:
        return "–"
    value = f"{row['mean']:.3g}"
    if row["kind"] == "identity":
        value = f"at most {value}"
    if row["ci_low"] is not None:
        value += f" [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"
    return f"{value}, {row['n_seeds']} seed{'s' if row['n_seeds'] > 1 else ''}"


def value_text(value: Any) -> str:
    """One run's value: a number, or the rank correlation of its points."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"{one_run('population', value):.3g} ({len(value)} points)"
    return f"{value:.3g}"


def told(row: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """A claim's row as texts by column; `values` are those of the run that is shown beside it."""
    by_construction = " (by construction)" if row["kind"] == "demonstration" else ""
    return {
        "claim": row["id"],
        "statement": row["statement"],
        "kind": row["kind"],
        "rule": row["rule"],
        "this run": value_text(values.get(row["id"])),
        "recorded": recorded_text(row),
        "verdict": MARKS[row["verdict"]] + by_construction,
        "Holm": "survives" if row["survives_holm"] else "",
        "note": f"stale: {'; '.join(row['stale'])}" if row["stale"] else "",
    }


def markdown(rows: Sequence[Mapping]) -> str:
    """The ledger in short, for the README: counts by verdict, then a folded table of findings for each notebook."""
    findings = [row for row in rows if row["kind"] in FINDINGS]
    others = [row for row in rows if row["kind"] not in FINDINGS]
    held = sum(row["verdict"] == "reproduced" for row in others)
    holm, bh = (sum(bool(row[field]) for row in findings) for field in ("survives_holm", "bh"))
    lines = [
        f"{len(findings)} findings: {_counts(findings)}; {holm} verdicts survive Holm's correction over the ledger, "
        f"{bh} Benjamini and Hochberg's. "
        f"{len(others)} identities and demonstrations: {held} hold.",
    ]
    for notebook in sorted({row["notebook"] for row in findings}):
        lines += _folded(notebook, [row for row in findings if row["notebook"] == notebook])
    return "\n".join(lines)


def _counts(findings: Sequence[Mapping]) -> str:
    count = {verdict: sum(row["verdict"] == verdict for row in findings) for verdict in MARKS}
    return ", ".join(f"{number} {verdict}" for verdict, number in count.items() if number)


def _folded(notebook: str, findings: Sequence[Mapping]) -> list[str]:
    lines = [
        "",
        f"<details><summary><code>{notebook}</code>: {_counts(findings)}</summary>",
        "",
        "| claim | statement | rule | recorded (95 % interval) | verdict |",
        "|---|---|---|---|---|",
    ]
    for said in (told(row, {}) for row in findings):
        cells = " | ".join(said[column] for column in ("statement", "rule", "recorded", "verdict"))
        lines.append(f"| `{said['claim']}` | {cells} |")
    return [*lines, "", "</details>"]


class ClaimsTable:
    """A notebook's claims, this run's values, the recorded evidence; shows itself in notebooks and text."""

    def __init__(self, rows: Sequence[Mapping], values: Mapping[str, Any], verdicts: bool = True) -> None:
        columns = ["claim", "statement", "kind", "rule", "this run"]
        self.note = "" if verdicts else "A smoke run is too small for a verdict."
        if verdicts:
            columns += ["recorded", "verdict", *(["note"] if any(row["stale"] for row in rows) else [])]
            places = "; ".join(sorted({place for row in rows for place in row["processors"]}))
            if any(row["n_seeds"] for row in rows):
                self.note = (f"Recorded on {places}. " if places else "") + DIGITS
        self.frame = pd.DataFrame([told(row, values) for row in rows], columns=columns)

    def _repr_html_(self) -> str:
        # pandas cuts cells at 50 characters unless told not to
        with pd.option_context("display.max_colwidth", None):
            table = self.frame.to_html(index=False, border=0, justify="left")
        return f"{table}<p>{self.note}</p>" if self.note else table

    def __repr__(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.width", None):
            return self.frame.to_string(index=False) + (f"\n{self.note}" if self.note else "")
