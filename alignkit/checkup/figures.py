"""The figure of the check-up, drawn from the report alone: accuracy, length, format, turns."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GRAY, INK = "#0072B2", "#E69F00", "#8A8F98", "#22262B"  # Okabe & Ito 2008; blue is "feedback"
CHOSEN, REJECTED = BLUE, ORANGE
DARK_ORANGE = "#8F6200"  # the orange of text: legible on white
MOST_TURNS = 10


def overview(report: dict) -> Figure:
    """Four panels that fit any data set, side by side; closed for pyplot, so that a notebook shows them once."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axes, panel in zip(grid.flat, (accuracy, length, formats, turns), strict=True):
        panel(axes, report)
    plt.close(figure)
    return figure


def accuracy(axes: Axes, report: dict) -> None:
    """Held-out accuracy of words and of length alone, with 95% intervals."""
    found = report["labels"]
    _plain(axes, "Held-out accuracy")
    if not found["measured"]:
        _say(axes, f"not measured: {found['why']}")
        return
    rows = [
        ("words", found["accuracy_words"], BLUE),
        ("words, lengths about equal", found["accuracy_words_equal_length"], BLUE),
        ("length alone", found["accuracy_length"], ORANGE),
    ]
    _whiskers(axes, [row for row in rows if row[1]["value"] is not None], "{:.0f}%")
    axes.axvline(50, color=GRAY, lw=1, zorder=0)
    axes.annotate("coin", (50, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 45), min(max(high, 70), 104))
    axes.set_xlabel("accuracy on prompts not trained on, %")


def length(axes: Axes, report: dict) -> None:
    """Distribution of the length difference; the two colors are its two sides."""
    found = report["length"]
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    centers = [(left + right) / 2 for left, right in zip(edges, edges[1:], strict=False)]
    width = edges[1] - edges[0]
    colors = [GRAY if abs(x) < width / 2 else CHOSEN if x > 0 else REJECTED for x in centers]
    axes.bar(centers, counts, width=width * 0.92, color=colors)
    _plain(axes, "Difference in length")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"words in chosen minus words in rejected (gray: within ±{width / 2:.0f})")
    total = found["longer"] + found["shorter"] + found["equal"]
    _corner(axes, 0.0, "left", f"chosen shorter\n{100 * found['shorter'] / total:.0f}%", DARK_ORANGE)
    _corner(axes, 1.0, "right", f"chosen longer\n{100 * found['longer'] / total:.0f}%", CHOSEN)


def formats(axes: Axes, report: dict) -> None:
    """Difference between chosen and rejected in the share of answers with each format mark."""
    _plain(axes, "Format marks")
    seen = [row for row in report["format"] if row["chosen"]["value"] or row["rejected"]["value"]]
    if not seen:
        _say(axes, "none of the marks occurs")
        return
    seen = sorted(seen, key=lambda row: -row["difference"]["value"])
    _whiskers(axes, [(row["name"], row["difference"], BLUE if row["clear"] else GRAY) for row in seen], "{:+.1f}")
    axes.axvline(0, color=GRAY, lw=1, zorder=0)
    axes.set_xlabel("← more in rejected       percentage points       more in chosen →")


def turns(axes: Axes, report: dict) -> None:
    """How many turns the user took before the compared answers."""
    counts = {}
    for number, count in report["turns"]["counts"].items():
        key = min(int(number), MOST_TURNS)
        counts[key] = counts.get(key, 0) + count
    names = [f"{key}+" if key == MOST_TURNS else str(key) for key in counts]
    bars = axes.bar(names, list(counts.values()), color=BLUE, width=0.7)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts.values()], padding=2, fontsize=9, color=INK)
    _plain(axes, "User turns")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("user turns before the compared answers")


# --- drawing ------------------------------------------------------------------------------------


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.xaxis.label.set_color(INK)


def _whiskers(axes: Axes, rows: list[tuple[str, dict, str]], form: str) -> None:
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


def _corner(axes: Axes, x: float, align: str, text: str, color: str) -> None:
    axes.text(x, 0.97, text, transform=axes.transAxes, ha=align, va="top", color=color, fontweight="bold")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GRAY, wrap=True)
    axes.set_axis_off()
