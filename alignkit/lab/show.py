"""What the command prints: tables, the ledger beside a run, how long each notebook took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignkit.errors import printable

if TYPE_CHECKING:
    from alignkit.lab.sweep import Outcome

LIVE_SECONDS = 60  # what a notebook may take at profile standard, on one thread


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; as wide as it needs to be when nobody's terminal limits it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for title in header:
        drawn.add_column(title, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))  # Text: square brackets are brackets, not markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=250)
    console.print(drawn)


def ledger(rows: Sequence[dict[str, Any]], values: dict[str, Any]) -> None:
    """The ledger as a table; `values` are those of the run that just ended."""
    from alignkit.claims.table import told

    if not rows:
        print("no claims registered")
        return
    columns = ["claim", "kind", "rule", *(["this run"] if values else []), "recorded", "verdict", "Holm", "note"]
    table(columns, [[said[name] for name in columns] for said in (told(row, values) for row in rows)])


def values_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """This run's value of each claim, if it ran a single seed (of several, the recorded column tells)."""
    from alignkit import claims

    if len({outcome.job.seed for outcome in outcomes}) > 1:
        return {}
    done = [outcome.job.result for outcome in outcomes if outcome.status != "failed"]
    return {claim_id: value for path in done for claim_id, value in claims.read_result(path)["values"].items()}


def seconds(outcomes: Sequence[Outcome]) -> None:
    """How long each notebook took: the slowest seed, and whether the live part is too long."""
    slowest: dict[str, float] = {}
    for outcome in outcomes:
        if outcome.status != "failed":
            slowest[outcome.job.stem] = max(outcome.seconds, slowest.get(outcome.job.stem, 0.0))
    rows = [
        [
            stem,
            ", ".join(f"{o.job.seed} {o.status}" for o in outcomes if o.job.stem == stem),
            f"{most:.1f}",
            f"over {LIVE_SECONDS} s" if outcomes[0].job.profile == "standard" and most > LIVE_SECONDS else "",
        ]
        for stem, most in slowest.items()
    ]
    if rows:
        table(["notebook", "seeds", "seconds (slowest)", ""], rows)
