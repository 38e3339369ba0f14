"""The command `alignkit`: run notebooks, read ledger and catalog, diagnose data, build the shipped models.

Heavy modules are imported by the command that needs them, so that `alignkit --help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit.errors import AlignkitError, needs, printable
from alignkit.files import INSTALLED, ROOT, choose
from alignkit.files import start as copy_series
from alignkit.lab import show

if TYPE_CHECKING:
    from alignkit.checkup.findings import Report

app = typer.Typer(
    help="Companion to the survey on reward design for LLM alignment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Html = Annotated[Path | None, typer.Option(help="Also write the report to this file.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(help='Names or numbers ("02") of notebooks (to run, also paths); default: all.', show_default=False),
]
Jobs = Annotated[int, typer.Option(help="How many notebooks run at a time, one thread each.")]


def main() -> None:
    """Entry point: an error the user can mend is one line and exit status 2, never a traceback."""
    # a CI job that is canceled gets SIGTERM: end as for Ctrl-C, with the workers
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII alone gets the rest spelled out
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except AlignkitError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `alignkit catalog | head`
        sys.stderr.close()
        sys.exit(0)


# --- start, run


@app.command()
def start(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")] = Path("alignkit-notebooks"),
) -> None:
    """Write the notebooks into a folder of yours, ready to run."""
    written = copy_series(folder)
    print(f"{len([path for path in written if path.suffix == '.ipynb'])} notebooks in {folder}")
    print(f"read them:  jupyter lab {shlex.quote(str(folder))}")
    print(f"run them:   cd {shlex.quote(str(folder))} && alignkit run --profile smoke")
    if find_spec("jupyterlab") is None or find_spec("nbclient") is None:
        print("either needs what is still missing here: pip install 'alignkit[notebooks]'")


def parse_seeds(text: str) -> list[int]:
    """Seeds from "0", "1,2,3", "1-5" or a mixture of these."""
    seeds: list[int] = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise AlignkitError(f"can't read seeds {text!r}; write 0, or 1,2,3, or 1-5 (the smaller number first)")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


@app.command()
def run(
    notebooks: Names = None,
    profile: Annotated[str, typer.Option(help="smoke, standard or thorough (evidence).")] = "standard",
    seeds: Annotated[str, typer.Option(help="0, or 1,2,3, or 1-5. 1..99 are evidence, 100 up for tuning.")] = "0",
    jobs: Jobs = 2,
    out: Annotated[Path, typer.Option(help="Folder for executed copies and results.")] = Path("runs"),
    in_place: Annotated[bool, typer.Option("--in-place", help="Update the notebooks and recorded evidence.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what was done before.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds per notebook.")] = 1800,
    param: Annotated[list[str] | None, typer.Option(help="A further parameter, key=value.")] = None,
) -> None:
    """Execute notebooks over seeds, in parallel. What was done before and is unchanged is skipped."""
    from alignkit import claims

    with needs("notebooks"):
        from alignkit.lab import sweep as runner
    if in_place and INSTALLED:
        raise AlignkitError("--in-place changes the project's own notebooks and evidence: run it in a clone")
    try:
        outcomes = runner.run(
            notebooks or [], profile=profile, seeds=parse_seeds(seeds), jobs=jobs, out=out, in_place=in_place,
            fresh=fresh, timeout=timeout, parameters=dict(map(_parameter, param or []))
        )  # fmt: skip
    except KeyboardInterrupt:
        print("interrupted: finished notebooks are kept, the same command goes on with the rest", file=sys.stderr)
        raise typer.Exit(130) from None
    show.seconds(outcomes)
    results = out / "results" if profile == claims.EVIDENCE_PROFILE and not in_place else claims.RESULTS
    paths = {outcome.job.stem: outcome.job.notebook for outcome in outcomes}
    rows = [row for row in claims.summarize(results, paths) if row["notebook"] in paths]
    show.ledger(rows, show.values_of(outcomes))
    print(f"executed copies: {out}/<notebook>/{profile}-seed<seed>.ipynb; results: {out}/results/")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        print(printable(f"{outcome.job.name} {outcome.describe()}"), file=sys.stderr)
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
        chosen = choose([notebook], list(dict.fromkeys(row["notebook"] for row in rows)), "notebook with claims")
        rows = [row for row in rows if row["notebook"] in chosen]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif as_markdown:
        print(ledger.markdown(rows))
    else:
        show.ledger(rows, {})


@app.command()
def attest(
    notebooks: Names = None,
    seed: Annotated[int | None, typer.Option(help="Which evidence seed is run; default: the first.")] = None,
    because: Annotated[str, typer.Option(help="Why values may differ: the fault that was mended.")] = "",
    jobs: Jobs = 2,
    out: Annotated[Path, typer.Option(help="Folder for old code and runs; kept.")] = Path("runs/attest"),
) -> None:
    """Does today's code give what the recorded evidence's code gives? Runs one seed with both, and notes the outcome.

    Exit status: 0 all equal, explained or unchanged; 1 something differs and stays stale.
    """
    from concurrent.futures import ThreadPoolExecutor

    from alignkit.claims import attest as attestation

    def one(name: str) -> tuple[str, ...]:
        found = attestation.attest(name, seed, because, out)
        status = found.status if found else "unchanged"
        print(f"{name}: {status}", file=sys.stderr, flush=True)
        gap = f"{found.largest:.2g} {found.where}" if found and found.where else "0" if found else ""
        return name, status, str(found.seed) if found else "", gap

    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(one, attestation.notebooks_with_evidence(notebooks or [])))
    show.table(["notebook", "outcome", "seed", "largest relative difference"], rows)
    if any(status == "differs" for _, status, *_ in rows):
        raise typer.Exit(1)


@app.command()
def catalog(
    conditions: Annotated[
        list[str] | None, typer.Argument(help="Such as granularity=step, 'format=vector|textual', 'year>=2024'.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="The same as an option; all conditions must hold.")] = None,
    crosstab: Annotated[tuple[str, str] | None, typer.Option(help="Count by two fields: ROWS COLUMNS.")] = None,
    as_json: AsJson = False,
) -> None:
    """Papers of the survey's field, classified by its dimensions."""
    from alignkit import catalog as papers

    wanted = [*(conditions or []), *(where or [])]
    if crosstab:
        found = papers.crosstab(*crosstab, wanted).rename_axis(index=" / ".join(crosstab), columns=None)
        shown = found.reset_index()
    else:
        found = papers.query(wanted)
        shown = found[["name", "year", "phase", "format", "granularity", "optimization", "arxiv_url"]]
    if as_json:
        print(found.to_json(orient="index" if crosstab else "records", indent=1))
        return
    show.table(list(map(str, shown.columns)), shown.astype(str).values.tolist())
    if not crosstab:
        print(f"{len(found)} papers")


# --- diagnose, build-models, bench


@app.command()
def diagnose(
    source: Annotated[str, typer.Argument(help="A preference data set: a file, a folder, or a name on the Hub.")],
    limit: Annotated[int | None, typer.Option(help="Read only so many rows.")] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Examine a preference data set before it is trained on. Exit status: 0 nothing serious, 1 serious, 2 not run."""
    from alignkit.checkup import diagnose as examine

    _hand_over(examine(source, limit=limit), as_json, html)


@app.command()
def audit(
    reward: Annotated[
        str, typer.Argument(help="module:function, file.py:function, a sequence-classification model, gold:assistant.")
    ],
    data: Annotated[str | None, typer.Option(help="Try it on these pairs, named as for `diagnose`.")] = None,
    world: Annotated[str | None, typer.Option(help="Try it in this world (default: assistant).")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds that the reward may take in all.")] = 300,
    budget: Annotated[float, typer.Option(help="Seconds that one completion may take.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the texts and what is done to them.")] = 0,
    texts: Annotated[bool, typer.Option(help="Show an example text with each finding.")] = True,
    html: Html = None,
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
    print(report.to_json() if as_json else printable(report.summary()))
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
    chosen = parse_seeds(seeds)
    if INSTALLED and out is None:
        raise AlignkitError("build-models: name a folder with --out; the installed models stay as they are")
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
    """Seconds of a training step beside TRL's, on the same work. Needs TRL, as `make` installs it."""
    if not (ROOT / "tests" / "bench.py").is_file():
        raise AlignkitError("bench is part of a clone (tests/bench.py), not of the installed package")
    sys.path.insert(0, str(ROOT))
    from tests import bench as stopwatch

    result = stopwatch.run(only, threads=threads, rounds=rounds)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for header, rows, note in stopwatch.tables(result):
        show.table(header, rows)
        print(f"{note}\n")
