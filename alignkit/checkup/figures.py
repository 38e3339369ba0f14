"""The figure of the check-up, drawn from the report alone: accuracy, length, format, turns."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GRAY, INK = "#0072B2", "#E69F00", "#8A8F98", "#22262B"  # Okabe & Ito 2008; blue is "feedback"
DARK_ORANGE = "#8F6200"  # the orange of text: legible on white
MOST_TURNS = 10
STYLE = {
    "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlecolor": INK,
    "axes.titlepad": 10, "axes.labelcolor": INK, "axes.edgecolor": GRAY, "axes.spines.top": False,
    "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
}  # fmt: skip


def overview(report: dict) -> Figure:
    """Four panels that fit any data set, side by side; closed for pyplot, so that a notebook shows them once."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        for axes, panel in zip(grid.flat, (_accuracy, _length, _formats, _turns), strict=True):
            panel(axes, report)
    plt.close(figure)
    return figure


def _accuracy(axes: Axes, report: dict) -> None:
    """Held-out accuracy of words and of length alone, with 95% intervals."""
    found = report["labels"]
    axes.set_title("Held-out accuracy")
    if not found["measured"]:
        _say(axes, f"not measured: {found['why']}")
        return
    rows = [
        ("words", found["accuracy_words"], BLUE),
        ("words, lengths about equal", found["accuracy_words_equal_length"], BLUE),
        ("length alone", found["accuracy_length"], ORANGE),
    ]
    _whiskers(axes, [row for row in rows if row[1]["value"] is not None], "{:.0f}%", reference=50)
    axes.annotate("coin", (50, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 45), min(max(high, 70), 104))
    axes.set_xlabel("accuracy on prompts not trained on, %")


def _length(axes: Axes, report: dict) -> None:
    """Distribution of the length difference; the two colors are its two sides."""
    found = report["length"]
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    width = edges[1] - edges[0]
    centers = [left + width / 2 for left in edges[:-1]]
    colors = [GRAY if abs(x) < width / 2 else BLUE if x > 0 else ORANGE for x in centers]
    axes.bar(centers, counts, width=width * 0.92, color=colors)
    axes.set(title="Difference in length", yticks=[],
             xlabel=f"words in chosen minus words in rejected (gray: within ±{width / 2:.0f})")  # fmt: skip
    axes.spines["left"].set_visible(False)
    for x, side, color in ((0.0, "shorter", DARK_ORANGE), (1.0, "longer", BLUE)):
        share = found[side] / (found["longer"] + found["shorter"] + found["equal"])
        axes.text(x, 0.97, f"chosen {side}\n{100 * share:.0f}%", transform=axes.transAxes, va="top", color=color,
                  ha="right" if x else "left", fontweight="bold")  # fmt: skip


def _formats(axes: Axes, report: dict) -> None:
    """Difference between chosen and rejected in the share of answers with each format mark."""
    axes.set_title("Format marks")
    seen = [row for row in report["format"] if row["chosen"]["value"] or row["rejected"]["value"]]
    if not seen:
        _say(axes, "none of the marks occurs")
        return
    seen = sorted(seen, key=lambda row: -row["difference"]["value"])
    rows = [(row["name"], row["difference"], BLUE if row["clear"] else GRAY) for row in seen]
    _whiskers(axes, rows, "{:+.1f}", reference=0)
    axes.set_xlabel("← more in rejected       percentage points       more in chosen →")


def _turns(axes: Axes, report: dict) -> None:
    """How many turns the user took before the compared answers."""
    counts = {}
    for number, count in report["turns"]["counts"].items():
        name = number if int(number) < MOST_TURNS else f"{MOST_TURNS}+"
        counts[name] = counts.get(name, 0) + count
    bars = axes.bar(list(counts), list(counts.values()), color=BLUE, width=0.7)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts.values()], padding=2, fontsize=9, color=INK)
    axes.set(title="User turns", yticks=[], xlabel="user turns before the compared answers")
    axes.spines["left"].set_visible(False)


def _whiskers(axes: Axes, rows: list[tuple[str, dict, str]], form: str, reference: float) -> None:
    """A dot with its interval in percent per row, the name at the left, the value above the dot."""
    for place, (_, number, color) in enumerate(rows):
        value = round(100 * number["value"], 1) + 0.0  # no "-0.0"
        if number["low"] is not None:
            axes.plot([100 * number["low"], 100 * number["high"]], [place, place], color=color, lw=2)
        axes.plot(value, place, "o", color=color, ms=7)
        axes.annotate(form.format(value), (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.axvline(reference, color=GRAY, lw=1, zorder=0)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GRAY, wrap=True)
    axes.set_axis_off()
