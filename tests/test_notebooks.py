"""Every notebook runs, and as committed it is what a reader should find: whole, clean, short and in order."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import nbformat
import pytest

import alignkit
from alignkit import claims
from alignkit.claims.table import MARKS
from alignkit.files import NOTEBOOKS, ROOT
from alignkit.lab import sweep as runner

PATHS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
HEADINGS = ["The idea", "By hand", "Predict", "What this toy leaves out", "Further reading"]
CLAIMED = "What was claimed, what we measured"  # before the last two, where there are claims

each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: nbformat.NotebookNode) -> str:
    """All text among the outputs."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    texts = [output.get("text", "") for output in outputs]
    return "\n".join(texts + [str(value) for output in outputs for value in output.get("data", {}).values()])


def test_there_are_notebooks_with_different_numbers():
    numbers = [path.stem.split("_")[0] for path in PATHS]
    assert numbers and len(set(numbers)) == len(numbers)


@pytest.mark.slow
@each
def test_runs_at_smoke_and_gives_no_verdict(path, tmp_path):
    (outcome,) = runner.run([path], profile="smoke", out=tmp_path, jobs=1, timeout=300)
    assert outcome.status == "done", outcome.describe()
    executed = nbformat.read(outcome.job.executed, as_version=4)
    assert not [mark for mark in MARKS.values() if mark in shown(executed)]


@pytest.fixture
def committed(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@each
def test_is_executed_from_top_to_bottom_without_complaint(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output.evalue for output in outputs if output.output_type == "error"]
    on_stderr = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in on_stderr if "warning" in text.lower()]


@each
def test_is_short(committed, path):
    assert 20 <= len(committed.cells) <= 55
    longest = max(code_cells(committed), key=lambda cell: cell.source.count("\n"))
    assert len(longest.source.splitlines()) <= 25, longest.source
    assert path.stat().st_size <= 1_000_000


@each
def test_has_one_parameters_cell(committed):
    (cell,) = [cell for cell in committed.cells if "parameters" in cell.metadata.get("tags", [])]
    values = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    assert (values["seed"], values["profile"]) == (0, "standard")


@each
def test_has_the_bones_all_notebooks_have(committed, path):
    prose = [cell.source for cell in committed.cells if cell.cell_type == "markdown"]
    lines = [line for text in prose for line in text.splitlines()]
    assert committed.cells[0].source.startswith(f"# {path.stem.split('_')[0]} ")
    assert sum(line.startswith("# ") for line in lines) == 1, "one title"
    expected = [*HEADINGS[:-2], *([CLAIMED] if claims.of_notebook(path.stem) else []), *HEADINGS[-2:]]
    sections = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    found = [next((i for i, line in enumerate(sections) if line.startswith(name)), None) for name in expected]
    missing = [name for name, place in zip(expected, found, strict=True) if place is None]
    assert not missing
    assert found == sorted(found), "in this order"


@pytest.mark.parametrize("path", [*PATHS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_what_its_prose_names_exists(path):
    """`optimize.dpo` and the like, wherever a sentence names one."""
    prose = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(prose, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    named = set(re.findall(r"`((?:worlds|feedback|rewards|optimize|evaluation|checkup)\.[A-Za-z_][\w.]*\w)", prose))
    assert not [name for name in named if not exists(f"alignkit.{name}")]


def exists(name: str) -> bool:
    home, _, attribute = name.rpartition(".")
    try:
        return hasattr(import_module(home), attribute) or bool(find_spec(name))
    except ModuleNotFoundError:
        return exists(home) and hasattr(attrgetter(home.removeprefix("alignkit."))(alignkit), attribute)
