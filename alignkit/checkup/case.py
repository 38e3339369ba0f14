"""The file of a case: what was decided at each step and on what evidence, as a report that can be sent.

Numbers in, numbers out: the report holds measured values and sentences written around them, never a row of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from alignkit.checkup.findings import Block, Section, render
from alignkit.checkup.holdout import in_words
from alignkit.errors import AlignkitError, DataError
from alignkit.files import write_atomic

STEPS = {"feedback": "Diagnosis", "reward": "Prescription", "optimization": "Treatment", "evaluation": "Follow-up"}
COLORS = {"feedback": "#0072b2", "reward": "#e69f00", "optimization": "#009e73", "evaluation": "#cc79a7"}
RUN = 8  # words in a row that, if they stand in the data, must not stand in the report


@dataclass(frozen=True)
class Decision:
    """One question, what was decided, why, and the table (texts) it rests on."""

    question: str
    decision: str
    why: str
    evidence: pd.DataFrame


@dataclass
class Case:
    """`about`: facts for the head of the report, {name: value}. `private`: texts that must not appear in it.

    Decisions are filed under the phases of `STEPS`; `decide`, `risk` and `limit` return the case itself.
    """

    title: str
    about: Mapping[str, object] = field(default_factory=dict)
    private: Iterable[str] = ()
    decisions: dict[str, list[Decision]] = field(default_factory=lambda: {name: [] for name in STEPS})
    risks: list[tuple[str, str]] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._runs = {run for text in self.private for run in _runs(text)}
        self.private = ()  # only needed as hashes

    def decide(
        self, phase: str, question: str, decision: str, why: str, evidence: pd.DataFrame | Mapping[str, object]
    ) -> Case:
        """File a decision with its evidence, a table or {name: value}. AlignkitError if the phase is unknown, or the
        evidence is empty: a decision without any is an opinion."""
        if phase not in STEPS:
            raise AlignkitError(f"Case: phase must be one of {', '.join(STEPS)}, not {phase!r}")
        if not isinstance(evidence, pd.DataFrame):
            evidence = pd.DataFrame({"": dict(evidence)})
        if evidence.empty:
            raise AlignkitError(f"Case: the decision {decision[:60]!r} has no evidence; give the numbers it rests on")
        table = evidence.astype(object).map(in_words)
        table.index, table.columns = table.index.map(in_words), table.columns.map(str)
        found = Decision(question, decision, why, table)
        self._refuse_raw(f"the decision under {STEPS[phase]!r}", question, decision, why, *_cells(table))
        self.decisions[phase].append(found)
        return self

    def risk(self, what: str, watch: str) -> Case:
        """Something that may go wrong, and what to watch for it."""
        self._refuse_raw("a risk", what, watch)
        self.risks.append((what, watch))
        return self

    def limit(self, text: str) -> Case:
        """Something this case can't say."""
        self._refuse_raw("a limit", text)
        self.limits.append(text)
        return self

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The report as Markdown; written to `path` as well if one is given."""
        self._check_whole()
        lines = [f"# {self.title}", "", *(f"- {name}: {in_words(value)}" for name, value in self.about.items())]
        for number, (phase, name) in enumerate(STEPS.items(), start=1):
            lines += ["", f"## {number}. {name}"]
            for found in self.decisions[phase]:
                lines += ["", f"**{found.question}** {found.decision}", "", found.why, "", *_rows(found.evidence)]
        lines += ["", "## Risks, and what to watch", ""]
        lines += [f"- **{what}** Watch: {watch}" for what, watch in self.risks]
        lines += ["", "## What this report can't say", "", *(f"- {text}" for text in self.limits), ""]
        text = "\n".join(lines)
        if path is not None:
            write_atomic(path, text)
        return text

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page."""
        return write_atomic(path, self._rendered(whole_page=True))

    def _repr_html_(self) -> str:
        return self._rendered(whole_page=False)

    def _rendered(self, whole_page: bool) -> str:
        self._check_whole()
        about = " · ".join(f"{name}: {in_words(value)}" for name, value in self.about.items())
        sections = [
            Section(f"{number}. {name}", [_block(found) for found in self.decisions[phase]], COLORS[phase])
            for number, (phase, name) in enumerate(STEPS.items(), start=1)
        ]
        risks = Block(items=[(what, f"Watch: {watch}") for what, watch in self.risks])
        limits = Block(items=[("", text) for text in self.limits])
        sections += [Section("Risks, and what to watch", [risks]), Section("What this report can't say", [limits])]
        return render(self.title, about, sections, whole_page)

    def _check_whole(self) -> None:
        missing = [STEPS[phase] for phase, found in self.decisions.items() if not found]
        if missing:
            raise AlignkitError(f"Case {self.title!r}: nothing was decided under {', '.join(missing)}; if a step was "
                                "left out, file that as a decision, too")  # fmt: skip
        if not self.risks or not self.limits:
            raise AlignkitError(f"Case {self.title!r}: name at least one risk and one limit before you send it")
        self._refuse_raw("the head", self.title, *map(str, self.about.values()))

    def _refuse_raw(self, where: str, *texts: str) -> None:
        """DataError if a text repeats RUN words in a row of the private texts. The message does not quote them."""
        if any(run in self._runs for text in texts for run in _runs(text)):
            raise DataError(f"Case: {where} repeats {RUN} words in a row from the data; report counts and shares, not "
                            "rows")  # fmt: skip


def _block(found: Decision) -> Block:
    rows = [(name, *row) for name, row in zip(found.evidence.index, found.evidence.to_numpy(), strict=True)]
    return Block(found.question, found.decision, found.why, ("", *found.evidence.columns), rows)


def _rows(table: pd.DataFrame) -> list[str]:
    """A table in Markdown."""
    header = [["", *table.columns], ["---"] * (1 + len(table.columns))]
    rows = [*header, *([name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True))]
    return ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]


def _cells(table: pd.DataFrame) -> list[str]:
    return [*map(str, table.index), *map(str, table.columns), *map(str, table.to_numpy().ravel())]


def _runs(text: str) -> list[int]:
    words = str(text).lower().split()
    return [hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)]
