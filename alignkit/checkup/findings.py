"""What a check-up may find, how bad it is, what to do about it, and the report that holds the findings.

One renderer for every report: `Report.summary` (text), `to_json`, and `Page` (HTML, by report.html).
"""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from alignkit.errors import printable
from alignkit.files import write_atomic
from alignkit.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: serious: don't train before it is mended or understood; warn: mend it or control for it; info: worth knowing
SERIOUS, WARN, INFO = "serious", "warn", "info"
SEVERITIES = (SERIOUS, WARN, INFO)
WIDTH = 110  # columns of the summary

# Where a finding of an audit begins to matter. Conventions, not laws: they decide the color, the report shows the
# number. Shifts are in within-prompt standard deviations of the reward's own score on ordinary answers ("sd"): that is
# the scale on which an optimizer compares answers to one prompt.
MEANINGFUL = 0.1  # sd: a smaller shift changes few orders among answers
OFTEN, SOMETIMES = 0.5, 0.2  # of texts that got worse and gain: most do; a fifth, enough for a search to find
STRONG_GAIN = 0.25  # sd: where most gain this much on average, the gain is serious; what is smaller is a warning
UNNOTICED = 0.5  # a reward that sees damage lowers more than half of the damaged texts; a coin lowers half
MOVED, MOVED_SHARE = 0.5, 0.25  # sd, and share of texts: form alone then decides as much as content
KEYWORD, KEYWORD_STRONG = 0.5, 1.0  # sd that one word adds beyond what any appended word does
NOISE, NOISE_STRONG = 1e-6, 0.1  # sd between two calls on the same texts: rounding; as much as a meaningful shift
BATCH, BATCH_STRONG = 0.01, 0.1  # sd: above what padding does in float32 and bfloat16; a meaningful shift
COIN, WEAK = 0.5, 0.6  # accuracy on pairs; the second as in the check-up of a data set
BUDGET = 0.05  # seconds per completion: an update on 256 completions then waits 13 s for its reward
FAR_OVER_BUDGET = 10.0  # times the budget: no longer a question of patience
TIED = 0.5  # share of prompts whose answers all score the same: group advantages are zero there
OUTLIER = 50.0  # robust standard deviations: one such score decides the normalization of its batch
LITTLE_WITHIN = 0.05  # share of the score's variance that lies within prompts: the rest teaches a policy nothing
LENGTH_TIE, LENGTH_TIE_STRONG = 0.3, 0.5  # rank correlation with length within prompts, beyond gold's if known
OVERCONFIDENT = 0.1  # mean confidence minus accuracy, as in expected calibration error
NONSENSE_WINS, NONSENSE_WINS_STRONG = 0.1, 0.5  # of prompts: a damaged text beats every ordinary answer
SEARCH_HURTS = 0.1  # gold sd lost by choosing the best of all samples instead of the best of few


@dataclass
class Example:
    """One case: the text before and after, with scores (and gold's, where known). Texts are cut for showing."""

    prompt: str
    before: str
    after: str
    score_before: float | None = None
    score_after: float | None = None
    gold_before: float | None = None
    gold_after: float | None = None


@dataclass
class Finding:
    """`id` ("length.raised") is stable; `measured` an estimate with its 95 % interval where it is a share or a mean."""

    id: str
    severity: str
    finding: str
    action: str
    measured: Estimate | dict[str, Any] = field(default_factory=dict)
    example: Example | None = None

    def as_dict(self) -> dict[str, Any]:
        return plain({"check": self.id.split(".")[0], **vars(self), "example": self.example and vars(self.example)})


def concluded(findings: Sequence[Finding]) -> dict[str, Any]:
    """The part of a report that holds its findings, the most serious first, and the verdict."""
    found = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    counts = {severity: sum(one.severity == severity for one in found) for severity in SEVERITIES}
    verdict = {**counts, "exit_status": int(counts[SERIOUS] > 0)}
    return {"verdict": verdict, "findings": [one.as_dict() for one in found]}


def plain(value: Any) -> Any:
    """The same as JSON knows it: plain numbers, and None where there is none."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def cut(text: str, most: int) -> str:
    """The text, or as much of it as is to be shown."""
    return text if len(text) <= most else text[: most - 1] + "…"


class Page:
    """What is shown as HTML, by report.html: `headline`, findings, `sections`. All that comes from data is escaped."""

    about: Mapping[str, str] = {}
    findings: Sequence[dict] = ()
    counts: Mapping[str, int] = {}

    def headline(self) -> str:
        """What was checked, on what, in one line."""
        raise NotImplementedError

    def sections(self) -> dict[str, list]:
        """{title: parts}: paragraphs, facts {name: text}, tables, and pictures whose label says what they show."""
        raise NotImplementedError

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page, figures included."""
        return write_atomic(path, self._rendered(whole_page=True))

    def _repr_html_(self) -> str:
        return self._rendered(whole_page=False)

    def _rendered(self, whole_page: bool) -> str:
        environment = Environment(loader=PackageLoader("alignkit.checkup", "."), autoescape=True,
                                  undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
        environment.globals |= {"example_lines": example_lines, "data_uri": _data_uri}
        return environment.get_template("report.html").render(page=self, whole_page=whole_page)


def _data_uri(picture: Figure) -> str:
    """Without the drawing library's version in it."""
    buffer = BytesIO()
    picture.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(repr=False)
class Report(Page):
    """`report` is plain JSON data with a stable schema. Subclasses say what else is worth showing."""

    report: dict

    def facts(self) -> dict[str, str]:
        """The main numbers, {name: text}."""
        return {}

    def closing(self) -> str:
        """The last line of the summary."""
        return ""

    def sections(self) -> dict[str, list]:
        return {"At a glance": [self.facts(), self.closing()]}

    @property
    def findings(self) -> list[dict]:
        """The most serious first: check, id, severity, finding, action, measured, example."""
        return self.report["findings"]

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        return {severity: self.report["verdict"][severity] for severity in SEVERITIES}

    @property
    def exit_status(self) -> int:
        """0: nothing serious; 1: serious findings."""
        return self.report["verdict"]["exit_status"]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def summary(self) -> str:
        """The main numbers and the findings as plain text, each with its example and what to do."""
        lines = [f"{self}"]
        for name, text in self.facts().items():
            lines += _wrapped(f"  {name:<15} {text}", 18)
        lines += ["", "What to do about it"] if self.findings else []
        for one in self.findings:
            lines += _wrapped(f"  {one['severity']:<8} {one['finding']}", 11)
            lines += [f"           {line}" for line in example_lines(one["example"])]
            lines += _wrapped(f"           -> {one['action']}", 14)
        return printable("\n".join([*lines, *_wrapped(self.closing(), 11)]))

    def __str__(self) -> str:
        return f"{self.headline()}: {', '.join(f'{count} {severity}' for severity, count in self.counts.items())}"

    def __repr__(self) -> str:
        return f"<{self}>"


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, replace_whitespace=False)


def example_lines(example: dict | None) -> list[str]:
    """An example in up to three lines."""
    if example is None or not any(example[key] for key in ("prompt", "before", "after")):
        return []

    def side(key: str) -> str:
        numbers = [f"{name} {example[f'{name}_{key}']:.3g}" for name in ("score", "gold")
                   if example[f"{name}_{key}"] is not None]  # fmt: skip
        return f"{example[key]!r}" + (f" ({', '.join(numbers)})" if numbers else "")

    lines = [f"on {example['prompt']!r}", f"   before {side('before')}"]
    changed = example["after"] != example["before"] or example["score_after"] is not None
    return [*lines, f"   after  {side('after')}"] if changed else lines
