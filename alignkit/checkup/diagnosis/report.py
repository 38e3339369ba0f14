"""A check-up of a preference data set before anyone trains on it.

`diagnose` reads the data and measures; the Diagnosis it returns holds plain numbers and shows them as text,
JSON, HTML or figures. Texts of the data stay out of it, single words apart, unless examples are asked for.
"""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from alignkit.checkup.diagnosis import figures
from alignkit.checkup.diagnosis.advice import SEVERITIES, advise
from alignkit.checkup.diagnosis.bias import (
    check_format,
    check_length,
    check_position,
    check_words,
    count_words,
)
from alignkit.checkup.diagnosis.checks import (
    PAIR,
    Masks,
    check_consistency,
    check_duplicates,
    check_prompts,
    check_sides,
    check_turns,
    independent_groups,
    near_duplicates,
)
from alignkit.checkup.diagnosis.labels import check_labels
from alignkit.checkup.diagnosis.pairs import PairSet, read_pairs
from alignkit.checkup.diagnosis.summary import summarize
from alignkit.errors import DataError
from alignkit.files import write_atomic
from alignkit.intervals import as_interval, as_number, as_percent, as_points, counted

EXAMPLE_CHARACTERS = 120
FIRST_ROWS = 5


def diagnose(
    source,
    limit: int | None = None,
    seed: int = 0,
    split: str | None = None,
    examples: int = 0,
    show_words: bool = True,
    show_progress: bool = False,
) -> Diagnosis:
    """Check a preference data set: a path, a Hub id, a datasets.Dataset or a PairSet already read.

    `limit`: read that many rows at most. `seed`: of the bootstrap and of the hashing for near duplicates.
    `examples`: show up to that many shortened rows per finding (none by default). `show_words`: show the
    words that set the sides apart in text, figures and HTML; the JSON holds them in any case. Raises
    DataError if there is nothing to check.
    """
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more.")
    pairs = source if isinstance(source, PairSet) else read_pairs(source, limit, split, show_progress)
    frame = _canonical(pairs.frame)
    leaders = near_duplicates(frame, seed)
    groups, grouped_by = independent_groups(frame, leaders)
    report, masks = _structure(frame, leaders)
    counts = count_words(frame)
    report = {
        "report": "preference data check-up",
        "source": _describe(pairs, limit, split, seed),
        "rows": _rows(pairs),
        **report,
        "length": check_length(frame, groups, seed),
        "position": check_position(frame),
        "format": check_format(frame, groups, seed),
        "labels": check_labels(frame, groups, grouped_by, seed),
        "words": check_words(*counts) if counts else None,
    }
    rows = {finding: _rows_of(frame, mask) for finding, mask in masks.items()}
    report["flagged"] = {
        finding: {"count": len(found), "first_rows": found[:FIRST_ROWS]} for finding, found in rows.items()
    }
    report["advice"] = advise(report)
    report["examples"] = _examples(frame, masks, examples)
    return Diagnosis(report, rows, show_words)


def _canonical(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by text, so that no number depends on the order of rows; `order` remembers it."""
    frame = frame.assign(order=np.arange(len(frame)))
    return frame.sort_values([*PAIR, "order"]).reset_index(drop=True)


def _structure(frame: pd.DataFrame, leaders: np.ndarray) -> tuple[dict, Masks]:
    """The checks that single out rows, with the rows they single out."""
    report, masks = {"turns": check_turns(frame)}, {}
    for name, (part, found) in {
        "prompts": check_prompts(frame),
        "sides": check_sides(frame),
        "duplicates": check_duplicates(frame, leaders),
        "consistency": check_consistency(frame),
    }.items():
        report[name] = part
        masks |= found
    return report, masks


def _describe(pairs: PairSet, limit: int | None, split: str | None, seed: int) -> dict:
    layouts = pairs.frame["layout"].value_counts().sort_index()
    return {
        "name": pairs.source,
        "layouts": {layout: int(count) for layout, count in layouts.items()},
        "notes": pairs.notes,
        "limit": limit,
        "split": split,
        "seed": seed,
    }


def _rows(pairs: PairSet) -> dict:
    return {
        "read": pairs.rows_read,
        "used": len(pairs),
        "rejected": pairs.rows_rejected,
        "reasons": [
            {"reason": reason, "count": rows.count, "first_rows": rows.first_rows}
            for reason, rows in pairs.rejected.items()
        ],
        "damage": pairs.damage,
    }


def _rows_of(frame: pd.DataFrame, mask: np.ndarray) -> list[int | str]:
    """Numbers of the masked rows in the source, in its order."""
    return frame[mask].sort_values("order")["row"].tolist()


def _examples(frame: pd.DataFrame, masks: Masks, most: int) -> dict[str, list[dict]]:
    """Up to `most` shortened rows per finding; nothing at all unless asked for."""
    if most < 1:
        return {}
    ordered = {finding: frame[mask].sort_values("order") for finding, mask in masks.items() if mask.any()}
    return {
        finding: rows[["row", *PAIR]].head(most).map(_shorten).to_dict("records") for finding, rows in ordered.items()
    }


def _shorten(value: int | str) -> int | str:
    if not isinstance(value, str):
        return value
    return value if len(value) <= EXAMPLE_CHARACTERS else value[: EXAMPLE_CHARACTERS - 1] + "…"


@dataclass
class Diagnosis:
    """What the check-up found. `report` is plain JSON data; `rows` lists all row numbers of each finding."""

    report: dict
    rows: dict[str, list[int | str]] = field(default_factory=dict)
    show_words: bool = True

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text; written to `path` as well if one is given."""
        text = json.dumps(self.report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            write_atomic(path, text)
        return text

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page, figures included."""
        return write_atomic(path, self._render(whole_page=True))

    def _repr_html_(self) -> str:
        return self._render(whole_page=False)

    def _render(self, whole_page: bool) -> str:
        pictures = {
            "accuracy": self.plot_accuracy(),
            "length": self.plot_length(),
            "format": self.plot_format(),
            "turns": self.plot_turns(),
        }
        return _template().render(
            report=self._shown(),
            severities=[(name, self._count(name)) for name in SEVERITIES],
            pictures={name: _embed(figure, title="") for name, figure in pictures.items()},
            whole_page=whole_page,
        )

    def summary(self) -> str:
        """The main numbers and the advice as plain text for a terminal."""
        return summarize(self._shown(), self.show_words)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self._count(name)} {name}" for name in SEVERITIES)
        return f"Diagnosis({self.report['source']['name']!r}, {self.report['rows']['used']:,} pairs: {counts})"

    def plot(self) -> Figure:
        """Accuracy, length, format and turns at a glance."""
        return figures.overview(self.report)

    def plot_accuracy(self) -> Figure:
        """Held-out accuracy of words and of length alone."""
        return figures.draw(figures.accuracy, self.report, (7.6, 2.7))

    def plot_length(self) -> Figure:
        """Distribution of the difference in length."""
        return figures.draw(figures.length, self.report, (7.6, 2.9))

    def plot_format(self) -> Figure:
        """Format marks that go with one side."""
        return figures.draw(figures.formats, self.report, (7.6, 3.3))

    def plot_turns(self) -> Figure:
        """User turns before the compared answers."""
        return figures.draw(figures.turns, self.report, (7.6, 2.6))

    def plot_words(self) -> Figure:
        """The words that most set chosen from rejected apart."""
        return figures.draw(figures.words, self._shown(), (7.6, 7.0))

    def _count(self, severity: str) -> int:
        return sum(advice["severity"] == severity for advice in self.report["advice"])

    def _shown(self) -> dict:
        """The report as people see it: with the words masked if they are not to be shown."""
        if self.show_words or self.report["words"] is None:
            return self.report
        report = copy.deepcopy(self.report)
        for entry in report["words"]["chosen"] + report["words"]["rejected"]:
            entry["word"] = entry["word"][0] + "•" * (len(entry["word"]) - 1)
        return report


# --- showing it ---------------------------------------------------------------------------------


def _template():
    environment = Environment(
        loader=PackageLoader("alignkit.checkup.diagnosis", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "percent": as_percent,
        "points": as_points,
        "number": as_number,
        "interval": as_interval,
        "counted": counted,
    }
    return environment.get_template("report.html")


def _embed(figure: Figure, title: str) -> str:
    """The figure as a data URI, titled by the page around it; without the drawing library's version in it."""
    figure.axes[0].set_title(title, loc="left")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
