"""One visual style; one color per phase; direct labels instead of legends where there is room.

Colors are Okabe and Ito's, which color-blind people can tell apart.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from alignkit.errors import needs
from alignkit.files import NOTEBOOKS

with needs("notebooks"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

PHASE = {"feedback": "#0072B2", "reward": "#E69F00", "optimization": "#009E73", "evaluation": "#CC79A7"}
INK, GRAY, FAINT = "#222222", "#8a8a8a", "#d9d9d9"
GOLD, PROXY, NULL = "#D55E00", "#56B4E9", "#8a8a8a"  # the truth, what is optimized, and the control

STORY = {  # phase: its title, what it asks, what it hands on
    "feedback": ("feedback\n= diagnosis", "What do people say\nabout the answers?", "pairs"),
    "reward": ("reward design\n= prescription", "What number (or text)\nsums that up?", "reward"),
    "optimization": ("optimization\n= treatment", "How does the policy\nuse it?", "treated\npolicy"),
    "evaluation": ("assessment\n= follow-up", "Did it help, and\nat what cost?", ""),
}
NOTE = {"textcoords": "offset points"}  # of an annotation whose shift is in typographic points
ARROW = {"arrowstyle": "-|>", "color": INK}


@dataclass(frozen=True)
class Place:
    """Where a notebook stands in the series: its number, a short title, and the phase it serves (None: all)."""

    number: str
    title: str
    phase: str | None


def series(folder: str | Path = NOTEBOOKS) -> list[Place]:
    """The numbered notebooks of a folder in order; each says in its metadata, under `alignkit`, its phase and its
    `short_title` (without one, its file's name). A new notebook is one file."""
    places = []
    for path in sorted(Path(folder).glob("[0-9]*_*.ipynb")):
        number, _, name = path.stem.partition("_")
        own = json.loads(path.read_text(encoding="utf-8")).get("metadata", {}).get("alignkit", {})
        places.append(Place(number, own.get("short_title", name.replace("_", "\n")), own.get("phase")))
    return places


def use_style() -> None:
    """The project's look for every figure that follows."""
    edges = {"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
    titles = {"axes.titleweight": "bold", "axes.titlesize": 11, "axes.titlelocation": "left"}
    sizes = {"axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "lines.linewidth": 2}
    inks = {"text.color": INK, "axes.labelcolor": INK, "figure.dpi": 80, "savefig.dpi": 80}
    sns.set_theme(style="ticks", rc=edges | titles | sizes | inks)


def label_line(ax: Axes, x, y, text: str, color: str, at: int = -1, dx: float = 5, dy: float = 0, **style) -> None:
    """Write a line's name beside one of its points, in the line's color; dx and dy in typographic points."""
    style = {"ha": "left", "va": "center", "fontsize": 9.5, "color": color, **NOTE, **style}
    ax.annotate(text, (np.asarray(x)[at], np.asarray(y)[at]), (dx, dy), **style)


def say(ax: Axes, text: str) -> None:
    """A small gray note in the lower right corner."""
    pale = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}  # to be read over bars, too
    ax.annotate(text, (0.99, 0.03), xycoords="axes fraction", ha="right", fontsize=8.5, color=GRAY, bbox=pale)


def band(ax: Axes, x, per_row: np.ndarray, color: str, label: str = "", **style) -> np.ndarray:
    """Mean over rows (prompts or seeds) with a 95 % band of the mean; returns the mean."""
    rows = np.atleast_2d(per_row)
    mean = np.nanmean(rows, axis=0)
    if len(rows) > 1:
        half = 1.96 * np.nanstd(rows, axis=0, ddof=1) / np.sqrt(len(rows))
        ax.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, lw=0)
    ax.plot(x, mean, color=color, **style)
    if label:
        label_line(ax, x, mean, label, color)
    return mean


def where_we_are(phase: str | None = None, notebook: str | None = None, note: str = "") -> Figure:
    """The little map at the top of a notebook: the series as a row of rooms, this notebook lit."""
    fig, ax = plt.subplots(figsize=(11, 1.55))
    places = series()
    ax.set(xlim=(-0.6, len(places) - 0.4), ylim=(-0.05, 2.15))
    ax.axis("off")
    for name, (title, _, _) in STORY.items():
        own = [i for i, place in enumerate(places) if place.phase == name]
        first, last, lit = min(own), max(own), phase in (None, name)
        ax.plot([first - 0.42, last + 0.42], [1.42] * 2, color=PHASE[name], lw=4, alpha=1 if lit else 0.35,
                solid_capstyle="round")  # fmt: skip
        _text(ax, (first + last) / 2, 1.55, title, 8.5, va="bottom", color=INK if lit else GRAY)
    for i, place in enumerate(places):
        here = place.number == notebook
        color = PHASE.get(place.phase, INK)
        fill, edge = color if here else "white", color if here or not place.phase else FAINT
        _box(ax, i - 0.42, 0.12, 0.84, 1.1, fill, edge, rounding=0.12)
        ink = "white" if here and place.phase != "reward" else INK
        _text(ax, i, 0.98, place.number, 9, weight="bold", color=ink)
        _text(ax, i, 0.5, place.title, 6.6, color=ink, linespacing=1)
    if note:
        fig.suptitle(note, x=0.01, ha="left", fontsize=9.5, color=GRAY)
    return fig


def chart(table: pd.DataFrame) -> Figure:
    """Vital signs from `alignkit.evaluation.chart`: gold and aspects on the left, symptom rates on the right."""
    kinds = table.index.get_level_values(0)
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.1), width_ratios=(1.25, 1))
    _dumbbells(axes[0], table[kinds.isin(["gold", "aspect"])], "Gold and its aspects (larger is better)")
    _dumbbells(axes[1], table[kinds == "symptom"], "Symptoms (share of completions)")
    axes[0].axvline(0, color=FAINT, lw=1, zorder=0)
    axes[0].set_xlabel("points of gold, mean of a completion")
    axes[1].set(xlim=(-0.06, 1), xlabel="share of completions in which the question arises")
    return fig


def _dumbbells(ax: Axes, table: pd.DataFrame, title: str) -> None:
    y = np.arange(len(table))[::-1]
    if "after" in table:
        ax.hlines(y, table["before"], table["after"], color=FAINT, lw=3, zorder=0)
    for name, color, shift in (("before", GRAY, 0.1), ("after", PHASE["optimization"], -0.1)):
        if name in table:
            error = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
            ax.errorbar(table[name], y + shift, xerr=error, fmt="o", color=color, ms=6, lw=1.5)
            ax.annotate(name, (table[name].iloc[0], y[0] + shift), (0, 9), ha="center", color=color, fontsize=9, **NOTE)
    ax.set_yticks(y, [key[1] for key in table.index])
    ax.set(title=title, ylim=(-0.6, len(table) - 0.25))
    ax.tick_params(axis="y", length=0)


def completions(rows: Iterable[tuple[str, str, float]], title: str = "") -> str:
    """A small HTML table of (prompt, completion, gold) for display; texts are escaped."""
    from html import escape

    body = "".join(
        f"<tr><td style='text-align:left;color:#555'>{escape(p)}</td><td style='text-align:left'>{escape(c)}</td>"
        f"<td style='text-align:right'>{g:+.2f}</td></tr>"
        for p, c, g in rows
    )
    head = "<tr><th style='text-align:left'>prompt</th><th style='text-align:left'>completion</th><th>gold</th></tr>"
    return f"<b>{escape(title)}</b><table style='font-size:90%'>{head}{body}</table>"


def curves(ax: Axes, x, lines: dict, colors: Iterable[str], past: Iterable[dict] = ()) -> None:
    """A named line for each entry of `lines`; faint behind them recorded runs, {"x": ..., name: ..., "pairs": n}."""
    past = list(past)
    for (name, y), color in zip(lines.items(), colors, strict=True):
        for run in past:
            ax.plot(run["x"], run[name], color=color, lw=0.8, alpha=0.35, zorder=1)
        ax.plot(x, y, "o-", color=color)
        crowded = any(abs(other[-1] - y[-1]) < 0.02 for key, other in lines.items() if key != name)
        label_line(ax, x, y, name, color, dy=7 * crowded * (1 if y is list(lines.values())[0] else -1))
    _say_recorded(ax, past)


def dots(ax: Axes, values: pd.Series, color: str, notes: Iterable = (), past: Iterable[dict] = ()) -> None:
    """One dot a row, its name at the left and its value above; faint marks for recorded runs, {name: value}."""
    past, notes = list(past), list(notes) or [""] * len(values)
    for y, (name, value) in enumerate(values.items()):
        ax.plot([run[name] for run in past], [y] * len(past), "|", color=color, alpha=0.4, ms=12)
        ax.plot(value, y, "o", color=color, ms=8)
        ax.annotate(f"{value:.2f}{notes[y]}", (value, y), (0, 8), ha="center", fontsize=9, **NOTE)
    ax.set_yticks(range(len(values)), values.index)
    ax.set_ylim(len(values) - 0.5, -0.7)
    _say_recorded(ax, past)


def _say_recorded(ax: Axes, past: list[dict]) -> None:
    if past:
        of = f" of {past[0]['pairs']:,} pairs" if "pairs" in past[0] else ""
        style = {"xycoords": "axes fraction", "ha": "right", "fontsize": 8, "color": GRAY, **NOTE}
        ax.annotate(f"faint: {len(past)} recorded seeds{of}", (1, 0), (-2, 3), **style)


def tinted(tables: dict[str, pd.DataFrame], color: str = PHASE["reward"], form: str = "{:d}") -> Figure:
    """Tables of numbers side by side, each cell tinted by its number; zeros stay empty."""
    widths = [len(table.columns) for table in tables.values()]
    size = (10, 0.9 + 0.36 * max(map(len, tables.values())))
    most = max(table.to_numpy().max() for table in tables.values())
    fig, axes = plt.subplots(1, len(tables), figsize=size, width_ratios=widths, squeeze=False)
    fig.get_layout_engine().set(w_pad=0.12)
    known = None
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        texts = table.map(lambda number: form.format(number) if number else "")
        sns.heatmap(table, ax=ax, annot=texts, fmt="", cbar=False, linewidths=1, vmin=0, vmax=most,
                    cmap=sns.light_palette(color, as_cmap=True), annot_kws={"fontsize": 9})  # fmt: skip
        ax.set(title=title, ylabel="", xlabel=str(table.columns.name or "").replace("_", " "))
        ax.tick_params(length=0, rotation=0, labelleft=known is None or not table.index.equals(known))
        known = table.index
    return fig


def phases() -> Figure:
    """The survey's story as a drawing: the phases and the follow-up, what passes between them, the notebooks."""
    fig, ax = plt.subplots(figsize=(10, 4.3))
    ax.set(xlim=(-0.55, 3.5), ylim=(-2.75, 1.25))
    ax.axis("off")
    for i, (name, (title, question, product)) in enumerate(STORY.items()):
        _box(ax, i - 0.36, 0, 0.72, 1.05, "white", PHASE[name], lw=2)
        _text(ax, i, 0.75, title, 9.5, weight="bold")
        _text(ax, i, 0.26, question, 8.5)
        if product:
            ax.annotate("", (i + 0.64, 0.5), (i + 0.36, 0.5), arrowprops=ARROW)
            _text(ax, i + 0.5, 0.58, product, 8.5, va="bottom", style="italic")
        for k, place in enumerate(place for place in series() if place.phase == name):
            y, words = -0.3 - 0.34 * k, place.title.replace("-\n", "-").replace("\n", " ")
            ax.plot(i - 0.33, y, "o", ms=7, color=PHASE[name])
            ax.text(i - 0.27, y, f"{place.number}  {words}", va="center", fontsize=9, weight="bold")
    ax.annotate("", (0, -2.45), (3, -2.45), arrowprops=ARROW | {"color": GRAY, "ls": "--"})
    again = "next visit: the treated policy answers, people judge again"
    _text(ax, 1.5, -2.52, again, 8.5, va="top", color=GRAY, style="italic")
    return fig


SURVEY_WORDS = {  # dimension: the survey's first version -> the values that our taxonomy splits it into
    "construction basis": {"rule-based": ["rule-based"], "data-driven": ["data-driven"], "(hybrids)": ["hybrid"]},
    "format": {"numerical": ["scalar", "vector"], "non-numerical": ["textual", "ranking"]},
    "expression": {"explicit": ["explicit"], "implicit": ["implicit"]},
    "granularity": {
        "general": ["response"],
        "fine-grained": ["segment", "step", "token", "multi-aspect", "multi-stage"],
    },
    "optimization": {"RL-based": ["rl"], "RL-free": ["rl-free"], "(ours)": ["inference-time", "in-context"]},
    "objectives": {"single": ["single"], "multi": ["multi"]},
}


def dimensions(inhabited: dict[str, dict[str, list[str]]]) -> Figure:
    """The survey's dimensions with all their values; those in `inhabited` ({value: names}) are filled."""
    fig, ax = plt.subplots(figsize=(10, 5.2))
    ax.set(xlim=(-1.75, 6.05), ylim=(-len(SURVEY_WORDS) + 0.4, 0.75))
    ax.axis("off")
    for row, (dimension, groups) in enumerate(SURVEY_WORDS.items()):
        color = PHASE["optimization" if dimension == "optimization" else "reward"]
        ax.text(-1.7, -row, dimension, va="center", fontsize=10.5, weight="bold")
        x = 0
        for words, values in groups.items():
            ax.plot([x + 0.04, x + len(values) - 0.06], [0.36 - row] * 2, color=GRAY, lw=1)
            _text(ax, x + len(values) / 2, 0.38 - row, words, 8, va="bottom", color=GRAY)
            for value in values:
                _value(ax, x, -row, value, inhabited.get(dimension, {}).get(value, []), color)
                x += 1
    return fig


def _value(ax: Axes, x: float, y: float, value: str, names: list[str], color: str) -> None:
    """One value of a dimension as a box, with the names of some that have it."""
    ink, edge, face = (INK, color, to_rgba(color, 0.3)) if names else (GRAY, FAINT, "white")
    _box(ax, x + 0.04, y - 0.3, 0.9, 0.58, face, edge)
    _text(ax, x + 0.49, y + 0.14, value, 9.5, color=ink)
    names = [*dict.fromkeys(name.split(",")[0] for name in names)]  # "ProcessReward, segments" is one of its kind
    lines = ["planned"]
    for shown in range(len(names), 0, -1):  # as many as two lines hold
        more = [f"and {len(names) - shown} more"] if shown < len(names) else []
        lines = textwrap.wrap(", ".join(names[:shown] + more), 21)
        if len(lines) <= 2:
            break
    _text(ax, x + 0.49, y - 0.13, "\n".join(lines), 6.8, color=ink, linespacing=1.1)


def _box(ax: Axes, x: float, y: float, width: float, height: float, face, edge, lw=1.2, rounding=0.08) -> None:
    """A box with round corners; x and y of its lower left corner."""
    corners = f"round,pad=0,rounding_size={rounding}"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=corners, lw=lw, fc=face, ec=edge))


def _text(ax: Axes, x: float, y: float, text: str, size: float, va: str = "center", **style) -> None:
    ax.text(x, y, text, ha="center", va=va, fontsize=size, **style)


def reliability(ax: Axes, gap: np.ndarray, color: str, label: str, bins: int = 6) -> None:
    """Share of right orders against stated confidence sigmoid(|gap|), in bins with equally many pairs."""
    confidence, right = 1 / (1 + np.exp(-np.abs(gap))), (gap > 0).astype(float)
    parts = np.array_split(np.argsort(confidence), bins)
    x, y = ([values[part].mean() for part in parts] for values in (confidence, right))
    ax.plot([0.5, 1], [0.5, 1], color=FAINT, lw=1, zorder=0)
    ax.plot(x, y, "o-", color=color, ms=5)
    beside = {"dx": 8, "dy": -8} if color == INK else {"dx": -8, "dy": 6, "ha": "right"}
    label_line(ax, x, y, label, color, at=-2, **beside)
    ax.set(xlabel="stated confidence", ylabel="share right", title="Is it as sure as it should be?", xlim=(0.49, 1.01),
           ylim=(0.4, 1.02))  # fmt: skip


def frontier(ax: Axes, kl, value, kl_n, gold_n, ns) -> None:
    """The exact optimum's curve and best-of-n's path on axes of gold against KL."""
    ax.plot(kl, value, color=INK, lw=1.5, ls="--")
    label_line(ax, kl, value, "exact optimum of gold", INK, dx=-4, dy=9, ha="right")
    ax.plot(kl_n, gold_n, ".-", color=GOLD, lw=1.5)
    for i in range(1, len(ns), 2):
        label_line(ax, kl_n, gold_n, f"n={ns[i]}", GOLD, at=i, dx=0, dy=9, ha="center", fontsize=8)
    label_line(ax, kl_n, gold_n, "best-of-n", GOLD)
    ax.axhline(0, color=FAINT, lw=1, zorder=0)
    ax.set(xlabel="KL from the patient (nats)", ylabel="gold gained (within-prompt sd)")


def named_lines(ax: Axes, x, lines: dict, colors: Iterable[str], log: bool = False, title: str = "") -> None:
    """Many lines, each named at its end; names that would overlap are moved apart. `log`: x in powers of two."""
    x = np.asarray(x)
    for y, color in zip(lines.values(), colors := list(colors), strict=True):
        ax.plot(x, y, ".-", color=color, lw=1.6)
    if log:
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, x)
        ax.set(xlim=(x[0] / 1.15, x[-1] * 3.2), xlabel="n (answers to choose from)")
    else:
        ax.set_xlim(x[0] - 0.03 * np.ptp(x), x[-1] + 0.22 * np.ptp(x) + 1e-9)
    low, high = ax.get_ylim()
    ends = np.array([y[-1] for y in lines.values()], dtype=float)
    order, placed, least = ends.argsort(), ends.copy(), 0.062 * (high - low)
    for a, b in zip(order, order[1:], strict=False):
        placed[b] = max(placed[b], placed[a] + least)
    placed -= max(0.0, placed.max() - high + least / 2)
    for a, b in zip(order[::-1], order[-2::-1], strict=False):
        placed[b] = min(placed[b], placed[a] - least)
    for name, color, y in zip(lines, colors, placed, strict=True):
        label_line(ax, x, [y], name, color, dx=6, fontsize=9)
    ax.set_title(title)


def step_strip(ax: Axes, steps: list[str], values, right: Iterable[bool], title: str = "") -> None:
    """An answer's steps from left to right, each over a bar of the probability that it is right; wrong ones marked."""
    ax.set(xlim=(0, max(5, len(steps))), ylim=(-0.45, 1.6))
    ax.axis("off")
    ax.text(-0.02, 0.9, title, ha="right", va="center", fontsize=9, transform=ax.transData)
    for k, (step, value, good) in enumerate(zip(steps, values, right, strict=True)):
        ink = INK if good else GOLD
        said = re.sub(r"(?<=[\d+=]) (?=[\d+=])", "", step.removesuffix(" ."))
        ax.text(k + 0.04, 0.62, said, color=ink, fontsize=9.5, va="bottom")
        ax.plot([k + 0.04, k + 0.84], [0.25, 0.25], color=FAINT, lw=6, solid_capstyle="butt")
        ax.plot([k + 0.04, k + 0.04 + 0.8 * value], [0.25, 0.25], color=PHASE["reward"], lw=6, solid_capstyle="butt")
        mark = "" if good else " \u2717"
        ax.text(k + 0.84, -0.1, f"{value:.2f}{mark}", color=ink, fontsize=8, ha="right", va="center")
