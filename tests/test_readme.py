"""The README's words against the project: its six lines run, its ledger is the ledger, what it names exists."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from alignkit import claims
from alignkit.files import DATA, NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_six_lines_run():
    (story,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    short = story.replace("n=1000", "n=64").replace("beta=0.2)", "beta=0.2, steps=2, progress=False)")
    assert short.count("n=64") == short.count("steps=2") == 1
    names: dict = {}
    exec(compile(short, "README.md", "exec"), names)  # our own text, not a model's
    assert len(names["treated"].history) == 2
    assert len(story.split("\n\n")[1].strip().splitlines()) == 6


def test_its_ledger_is_the_recorded_one():
    printed = claims.markdown(claims.summarize())
    summary = README.split("<!-- ledger -->")[1].split("<!-- /ledger -->")[0].strip()
    assert summary == printed.split("\n\n")[0], "replace it by the first line that `alignkit claims --markdown` prints"
    rows = (DATA / "claims.md").read_text(encoding="utf-8").split("\n\n", 2)[2].strip()
    assert rows == printed, "replace what stands in data/claims.md by what `alignkit claims --markdown` prints"


def test_it_is_short():
    assert len(README.splitlines()) <= 200


def test_every_built_notebook_is_in_its_table_with_its_seconds():
    for path in NOTEBOOKS.glob("[0-9]*.ipynb"):
        assert re.search(rf"\| `{path.stem}` \|.*\| \d+ \|", README), path.stem


def test_its_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("target", ["run", "test", "test-all", "lab"])
def test_its_commands_are_make_targets(target):
    assert f"make {target}" in README and re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [("catalog", "--where", "granularity=step"), ("claims", "--json")])
def test_its_other_commands_work(command):
    script = Path(sys.executable).with_name("alignkit")
    out = subprocess.run([script, *command], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip()


def test_its_picture_is_one_of_the_notebook_drawn_alike():
    """The same picture: size and ink agree, whatever library or processor wrote the bytes."""
    committed = nbformat.read(NOTEBOOKS / "02_reward_modeling.ipynb", as_version=4)
    drawn = [read_picture(base64.b64decode(output["data"]["image/png"])) for cell in committed.cells
             for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]  # fmt: skip
    picture = read_picture((NOTEBOOKS / "figures" / "frontier.png").read_bytes())
    alike = [np.abs(other - picture).mean() for other in drawn if other.shape == picture.shape]
    assert min(alike, default=255) < 8, "save it again from 02_reward_modeling"


def read_picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=float)
