"""The command: light help, errors in one line, JSON that is only JSON, options handed on to the modules."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from alignkit import claims
from alignkit.errors import AlignkitError
from alignkit.files import NOTEBOOKS
from alignkit.lab import cli
from alignkit.lab import sweep as runner
from alignkit.lab.sweep import Job

SERIES = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


@pytest.fixture
def alignkit(monkeypatch, capsys):
    """Run the command in this process; returns exit status, standard output and standard error."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # leave the test run's own handlers alone

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["alignkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(status=end.value.code or 0, out=out, err=err)

    return call


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['alignkit', '--help']\nfrom alignkit.lab.cli import main\ntry: main()\nfinally: "
    code += "print('HEAVY', sorted({'torch', 'pandas', 'numpy', 'scipy', 'nbformat', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("run", "claims", "catalog", "diagnose", "build-models"):
        assert command in done.stdout
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["catalog", "granularity=steps"], "response, segment, step"),
        (["catalog", "--where", "granularity=steps"], "response, segment, step"),
        (["catalog", "--crosstab", "title", "format"], "title"),
        (["claims", "--notebook", "77"], "77"),
        (["claims", "--results", "no/such/folder"], "no/such/folder"),
        (["run", "nope"], "nope"),
        (["run", "--seeds", "1-"], "1-"),
        (["run", "--profile", "quick"], "smoke, standard, thorough"),
        (["run", "--profile", "smoke", "--in-place"], "smoke"),
        (["run", "--jobs", "0"], "jobs must be a finite number above 0, not 0"),
        (["run", "--param", "beta"], "key=value"),
        (["build-models", "--seeds", "x"], "can't read seeds"),
    ],
)
def test_errors_are_one_line_and_status_2(alignkit, arguments, told):
    end = alignkit(*arguments)
    assert end.status == 2 and end.out == ""
    assert end.err.startswith("error: ") and told in end.err
    assert end.err.count("\n") == 1


def test_wrong_usage_is_status_2(alignkit):
    assert alignkit("run", "--colour").status == 2


def test_catalog(alignkit):
    papers = json.loads(alignkit("catalog", "granularity=step", "year>=2025", "--json").out)
    assert papers and all(paper["granularity"] == "step" and paper["year"] >= 2025 for paper in papers)
    text = alignkit("catalog", "granularity=step", "year>=2025").out
    assert f"{len(papers)} papers" in text and papers[0]["arxiv_url"] in text
    same = alignkit("catalog", "--where", "granularity=step", "--where", "year>=2025", "--json").out
    assert json.loads(same) == papers
    mixed = alignkit("catalog", "year>=2025", "--where", "granularity=step", "--json").out
    assert json.loads(mixed) == papers
    counts = json.loads(alignkit("catalog", "--crosstab", "format", "expression", "--json").out)
    assert counts["vector"]["implicit"] == 2
    assert "implicit" in alignkit("catalog", "--crosstab", "format", "expression").out


def test_claims(alignkit, tmp_path):
    rows = json.loads(alignkit("claims", "--json", "--results", tmp_path).out)
    assert {row["id"] for row in rows} == set(claims.load())
    assert {row["verdict"] for row in rows} == {"unmeasured"}
    text = alignkit("claims", "--results", tmp_path).out
    assert all(row["id"] in text for row in rows) and "unmeasured" in text
    number = rows[0]["notebook"].split("_")[0]
    chosen = json.loads(alignkit("claims", "--json", "--notebook", number).out)
    assert {row["notebook"] for row in chosen} == {rows[0]["notebook"]}


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Replace the runner by one that notes what it was asked and reports a done and a failed notebook."""
    asked = {}

    def run(notebooks, **options):
        asked.update(options, notebooks=notebooks)
        job, bad = (Job(Path(name), 0, "standard", tmp_path, 1) for name in ("01_a.ipynb", "02_b.ipynb"))
        job.result.parent.mkdir(parents=True, exist_ok=True)
        job.result.write_text(json.dumps(dict.fromkeys(("series", "rules", "fingerprint"), {}) | RESULT))
        failed = runner.Outcome(bad, "failed", 0.5, "KeyError", "'lost'", 3, "x[y]")
        return [runner.Outcome(job, "done", 61.5), failed][: asked.pop("count", 2)]

    monkeypatch.setattr(runner, "run", run)
    return asked


RESULT = {"notebook": "01_a", "profile": "standard", "seed": 0, "values": {}, "seconds": 61.5}


def test_run_hands_on_its_options(alignkit, sweep):
    alignkit(
        "run",
        "01",
        "x y.ipynb",
        "--seeds",
        "1-3",
        "--jobs",
        3,
        "--param",
        "beta=0.1",
        "--param",
        "name=a",
        "--fresh",
    )
    assert sweep["notebooks"] == ["01", "x y.ipynb"] and sweep["seeds"] == [1, 2, 3]
    assert sweep["parameters"] == {"beta": 0.1, "name": "a"}
    assert (sweep["jobs"], sweep["fresh"], sweep["in_place"], sweep["timeout"]) == (3, True, False, 1800)


def test_run_reports_seconds_and_failures(alignkit, sweep):
    end = alignkit("run")
    assert end.status == 1
    assert "61.5" in end.out and "over 60 s" in end.out and "executed copies" in end.out
    assert "02_b seed 0 failed in code cell 3 (x[y]): KeyError: 'lost'" in end.err
    sweep["count"] = 1
    assert alignkit("run").status == 0


def test_interrupt_is_status_130(alignkit, monkeypatch):
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    end = alignkit("run")
    assert end.status == 130 and "same command" in end.err


def test_diagnose(alignkit, monkeypatch, tmp_path):
    asked = []

    def diagnose(source, limit=None):
        asked.append((source, limit))
        if source == "nowhere":
            raise AlignkitError("no data at nowhere;\n give a file")
        write = lambda path: path.write_text("<html>")  # noqa: E731
        return SimpleNamespace(summary=lambda: "12 pairs", to_json=lambda: '{"pairs": 12}', to_html=write,
                               exit_status=int(source == "bad.jsonl"))  # fmt: skip

    module = ModuleType("alignkit.checkup")
    module.diagnose = diagnose
    monkeypatch.setitem(sys.modules, "alignkit.checkup", module)
    assert alignkit("diagnose", "pairs.jsonl").out == "12 pairs\n"
    end = alignkit("diagnose", "pairs.jsonl", "--json", "--limit", 5, "--html", tmp_path / "report.html")
    assert json.loads(end.out) == {"pairs": 12} and (tmp_path / "report.html").exists()
    assert asked == [("pairs.jsonl", None), ("pairs.jsonl", 5)]
    assert alignkit("diagnose", "bad.jsonl").status == 1
    end = alignkit("diagnose", "nowhere")
    assert (end.status, end.err) == (2, "error: no data at nowhere; give a file\n")


def test_build_models(alignkit, monkeypatch):
    asked = {}
    module = ModuleType("alignkit.lab.build")
    module.build_models = lambda **options: asked.update(options)
    monkeypatch.setitem(sys.modules, "alignkit.lab.build", module)
    assert alignkit("build-models").status == 0
    assert asked == {"world": "assistant", "seeds": [0, 1, 2, 3, 4], "out": None}


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("1-3,7", [1, 2, 3, 7]), (" 1, 2 ", [1, 2]), ("5,1-2,5", [5, 1, 2])]
)
def test_seeds(text, seeds):
    assert cli.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "-1", "1;2", "1.5"])
def test_seeds_that_are_none(text):
    with pytest.raises(AlignkitError, match="can't read seeds"):
        cli.parse_seeds(text)


def test_an_ascii_terminal_gets_the_whole_table():
    code = "import sys; sys.argv = ['alignkit', 'claims', '--notebook', '01']\n"
    code += "from alignkit.lab.cli import main; main()"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"noise-costs-little" in done.stdout


def test_escapes_in_a_name_are_spelled_out(alignkit):
    end = alignkit("run", "no\x1b[31m.ipynb")
    assert end.status == 2 and "\x1b" not in end.err and "\\x1b[31m" in end.err


def test_start_writes_the_series_once(alignkit, tmp_path):
    folder = tmp_path / "my series"
    assert f"{len(SERIES)} notebooks" in alignkit("start", folder).out
    assert len(list(folder.glob("[0-9]*.ipynb"))) == len(SERIES) and (folder / "figures" / "frontier.png").is_file()
    assert "not empty" in alignkit("start", folder).err
    (tmp_path / "file").write_text("")
    assert "could not write" in alignkit("start", tmp_path / "file" / "series").err
