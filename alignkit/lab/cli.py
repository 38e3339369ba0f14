"""The command `alignkit`: run notebooks, read ledger and catalog, diagnose data, build the shipped models.

Heavy modules are imported by the command that needs them, so that `alignkit --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.errors import AlignkitError

if TYPE_CHECKING:
    from alignkit.checkup.findings import Report
    from alignkit.lab.sweep import Outcome

app = typer.Typer(
    help="Companion to the survey on reward design for LLM alignment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
LIVE_SECONDS = 60  # what a notebook may take at profile standard, on one thread


def main() -> None:
    """Entry point: an error the user can mend is one line and exit status 2, never a traceback."""
    # a CI job that is canceled gets SIGTERM: end as for Ctrl-C, with the workers
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except AlignkitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `alignkit catalog | head`
        sys.stderr.close()
        sys.exit(0)


# --- run


@app.command()
def run(
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(help='Names, numbers ("02") or paths; default: all.', show_default=False),
    ] = None,
    profile: Annotated[str, typer.Option(help="smoke, standard or thorough (evidence).")] = "standard",
    seeds: Annotated[str, typer.Option(help="0, or 1,2,3, or 1-5. 1..99 are evidence, 100 up for tuning.")] = "0",
    jobs: Annotated[int, typer.Option(help="How many notebooks run at a time, one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for executed copies and results.")] = Path("runs"),
    in_place: Annotated[bool, typer.Option("--in-place", help="Update the notebooks and recorded evidence.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what was done before.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds per notebook.")] = 1800,
    param: Annotated[list[str] | None, typer.Option(help="A further parameter, key=value.")] = None,
) -> None:
    """Execute notebooks over seeds, in parallel. What was done before and is unchanged is skipped."""
    from alignkit import claims
    from alignkit.lab import sweep as runner

    try:
        outcomes = runner.run(
            notebooks or [],
            profile=profile,
            seeds=runner.parse_seeds(seeds),
            jobs=jobs,
            out=out,
            in_place=in_place,
            fresh=fresh,
            timeout=timeout,
            parameters=dict(_parameter(text) for text in param or []),
        )
    except KeyboardInterrupt:
        print(
            "interrupted: finished notebooks are kept, the same command goes on with the rest",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    _report_seconds(outcomes)
    evidence_is_elsewhere = profile == claims.EVIDENCE_PROFILE and not in_place
    results = out / "results" if evidence_is_elsewhere else claims.RESULTS
    paths = {outcome.job.stem: outcome.job.notebook for outcome in outcomes}
    rows = [row for row in claims.summarize(results, paths) if row["notebook"] in paths]
    _print_claims(rows, _values_of(outcomes))
    print(f"executed copies: {out}/<notebook>/{profile}-seed<seed>.ipynb; results: {out}/results/")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        print(f"{outcome.job.name} {outcome.describe()}", file=sys.stderr)
        if outcome.job.failed.exists():
            print(f"  as far as it got: {outcome.job.failed}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _parameter(text: str) -> tuple[str, Any]:
    """("beta", 0.1) from "beta=0.1": a number or truth value if it reads as one, else text.

    A file or folder that is there is named in full: notebooks run in a folder of their own.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise AlignkitError(f"--param {text!r}: write key=value")
    try:
        return name, json.loads(value)
    except ValueError:
        is_path = ("/" in value or "." in value) and os.path.exists(value)
        return name, os.path.abspath(value) if is_path else value


def _report_seconds(outcomes: list[Outcome]) -> None:
    """How long each notebook took: the slowest seed, and whether the live part is too long."""
    slowest: dict[str, float] = {}
    for outcome in outcomes:
        if outcome.status != "failed":
            slowest[outcome.job.stem] = max(outcome.seconds, slowest.get(outcome.job.stem, 0.0))
    rows = [
        [
            stem,
            ", ".join(f"{o.job.seed} {o.status}" for o in outcomes if o.job.stem == stem),
            f"{seconds:.1f}",
            f"over {LIVE_SECONDS} s" if outcomes[0].job.profile == "standard" and seconds > LIVE_SECONDS else "",
        ]
        for stem, seconds in slowest.items()
    ]
    if rows:
        _print_table(["notebook", "seeds", "seconds (slowest)", ""], rows)


def _values_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """This run's value of each claim, if it ran a single seed (of several, the recorded column tells)."""
    from alignkit import claims

    if len({outcome.job.seed for outcome in outcomes}) > 1:
        return {}
    done = [Path(outcome.job.result) for outcome in outcomes if outcome.status != "failed"]
    return {claim_id: value for path in done for claim_id, value in claims.read_result(path)["values"].items()}


# --- claims, catalog


@app.command()
def claims(
    notebook: Annotated[str | None, typer.Option(help="Only this notebook's (its stem or number).")] = None,
    results: Annotated[Path | None, typer.Option(help="Another folder of results, such as runs/results.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The README's short form.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is claimed and what the recorded evidence says, with verdicts and what is stale."""
    from alignkit import claims as ledger

    if results is not None and not results.is_dir():
        raise AlignkitError(f"there is no folder {results}")
    rows = ledger.summarize(results)
    if notebook is not None:
        known = sorted({row["notebook"] for row in rows})
        chosen = [name for name in known if notebook in (name, name.split("_")[0])]
        if not chosen:
            raise AlignkitError(f"no claims for notebook {notebook!r}; there are some for {', '.join(known)}")
        rows = [row for row in rows if row["notebook"] in chosen]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif as_markdown:
        print(ledger.markdown(rows))
    else:
        _print_claims(rows, {})


@app.command()
def attest(
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(help='Names or numbers ("02"); default: all with evidence.', show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which evidence seed is run; default: the first.")] = None,
    because: Annotated[str, typer.Option(help="Why values may differ: the fault that was mended.")] = "",
    jobs: Annotated[int, typer.Option(help="How many notebooks at a time, one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for old code and runs; kept, so that it resumes.")] = Path(
        "runs/attest"
    ),
) -> None:
    """Does today's code give what the recorded evidence's code gives? Runs one seed with both, and notes the outcome.

    Exit status: 0 all equal, explained or unchanged; 1 something differs and stays stale.
    """
    from concurrent.futures import ThreadPoolExecutor

    from alignkit.claims import attest as attestation

    names = attestation.notebooks_with_evidence(notebooks or [])

    def one(name: str):
        found = attestation.attest(name, seed, because, out)
        print(f"{name}: {found.status if found else 'unchanged'}", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    _print_table(["notebook", "outcome", "seed", "largest relative difference"], attestation.table(found))
    if any(item and item.status == "differs" for item in found.values()):
        raise typer.Exit(1)


@app.command()
def catalog(
    conditions: Annotated[
        list[str] | None,
        typer.Argument(help="Conditions: granularity=step, 'format=vector|textual', 'year>=2024'."),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="The same as an option; all conditions must hold.")] = None,
    crosstab: Annotated[
        tuple[str, str] | None, typer.Option(help="Count by two fields.", metavar="ROWS COLUMNS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Papers of the survey's field, classified by its dimensions."""
    from alignkit import catalog as papers

    wanted = [*(conditions or []), *(where or [])]
    if crosstab:
        counts = papers.crosstab(*crosstab, wanted)
        if as_json:
            print(counts.to_json(orient="index", indent=1))
            return
        header = [f"{crosstab[0]} / {crosstab[1]}", *map(str, counts.columns)]
        _print_table(
            header,
            [[str(name), *map(str, row)] for name, row in zip(counts.index, counts.values, strict=True)],
        )
        return
    found = papers.query(wanted)
    if as_json:
        print(found.to_json(orient="records", indent=1, force_ascii=False))
        return
    shown = ["name", "year", "phase", "format", "granularity", "optimization", "arxiv_url"]
    _print_table(shown, found[shown].astype(str).values.tolist())
    print(f"{len(found)} papers")


# --- diagnose, build-models, bench


@app.command()
def diagnose(
    source: Annotated[str, typer.Argument(help="A preference data set: a file, a folder, or a name on the Hub.")],
    limit: Annotated[int | None, typer.Option(help="Read only so many rows.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Examine a preference data set before it is trained on. Exit status: 0 nothing serious, 1 serious, 2 not run."""
    from alignkit.checkup import diagnose as examine

    _hand_over(examine(source, limit=limit), as_json, html)


@app.command()
def audit(
    reward: Annotated[
        str,
        typer.Argument(help="module:function, file.py:function, a sequence-classification model, or gold:assistant."),
    ],
    data: Annotated[str | None, typer.Option(help="Try it on these pairs, named as for `diagnose`.")] = None,
    world: Annotated[str | None, typer.Option(help="Try it in this world (default: assistant).")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds that the reward may take in all.")] = 300,
    budget: Annotated[float, typer.Option(help="Seconds that one completion may take.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the texts and what is done to them.")] = 0,
    texts: Annotated[bool, typer.Option(help="Show an example text with each finding.")] = True,
    html: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Screen a reward for side effects before it is used. Exit status: 0 nothing serious, 1 serious, 2 not run."""
    from alignkit.checkup import audit as screen

    _hand_over(screen(reward, data, world, time_limit=time_limit, budget=budget, seed=seed, texts=texts), as_json, html)


def _hand_over(report: Report, as_json: bool, html: Path | None) -> None:
    """Print a check-up's report, write it as a page if asked to, and end with its exit status."""
    if html is not None:
        report.to_html(html)
        print(f"report: {html}", file=sys.stderr)
    print(report.to_json() if as_json else report.summary())
    raise typer.Exit(report.exit_status)


@app.command("build-models")
def build_models(
    world: Annotated[
        str, typer.Option(help="assistant, arithmetic, multitask, authors, shapes, assistant-small or assistant-large.")
    ] = "assistant",
    seeds: Annotated[str, typer.Option(help="One model for each.")] = "0-4",
    out: Annotated[Path | None, typer.Option(help="Folder; default: where the shipped models are.")] = None,
) -> None:
    """Pretrain the tiny models that are shipped with the project."""
    from alignkit.lab.sweep import parse_seeds

    chosen = parse_seeds(seeds)
    from alignkit.lab.build import build_models as build  # torch: only once there is something to build

    build(world=world, seeds=chosen, out=out)


@app.command()
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(help="dpo, dpo_cached (TRL reads its reference once, too), kto, reward, rloo, grpo; repeatable."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads for both sides.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often each side is timed, in turns.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Seconds of a training step beside TRL's, on the same work. Needs TRL: pip install 'alignkit[dev]'."""
    from tests import bench as stopwatch

    result = stopwatch.run(only, threads=threads, rounds=rounds)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for header, rows, note in stopwatch.tables(result):
        _print_table(header, rows)
        print(f"{note}\n")


# --- printing


def _print_claims(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    """The ledger as a table; `values` are those of the run that just ended."""
    from alignkit.claims import table as text

    if not rows:
        print("no claims registered")
        return
    header = [
        "claim",
        "kind",
        "rule",
        *(["this run"] if values else []),
        "recorded",
        "verdict",
        "Holm",
        "note",
    ]
    _print_table(
        header,
        [
            [
                row["id"],
                row["kind"],
                row["rule"],
                *([text.value_text(values.get(row["id"]))] if values else []),
                text.recorded_text(row),
                text.verdict_text(row),
                "survives" if row["survives_holm"] else "",
                text.stale_text(row),
            ]
            for row in rows
        ],
    )


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; as wide as it needs to be when nobody's terminal limits it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: square brackets in it are brackets, not markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=250)
    console.print(table)
