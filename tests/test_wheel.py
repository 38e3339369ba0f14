"""Installed without a clone: the wheel alone, in an environment and a folder that know nothing of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from alignkit.files import INSTALLED, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(INSTALLED, reason="builds the wheel from a clone"),
]
BUILT_FROM = ["alignkit", "data", "notebooks", "pyproject.toml", "setup.py", "README.md", "LICENSE"]


class Place:
    """A folder with an environment that has the wheel, and beside it this environment's other packages."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "my work"
        self.folder.mkdir()
        venv.create(folder / "env", with_pip=True)
        self.bin = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
        self.call("python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
        library = Path(self.call("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # a line of a .pth file adds a folder at the end, and runs none of the .pth files in it: the wheel comes first,
        # and an editable installation of the clone stays unknown
        (library / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def call(self, *command, check=True) -> str:
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ALIGNKIT_CLAIMS")}
        done = subprocess.run([str(self.bin / command[0]), *map(str, command[1:])], cwd=self.folder, env=env,
                              capture_output=True, text=True, encoding="utf-8")  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout if check else done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a build")
    for name in BUILT_FROM:  # a copy: building leaves traces
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", "dist", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    return Place(tmp_path_factory.mktemp("elsewhere"), wheel)


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 25e6


def test_the_package_is_the_installed_one(place):
    code = "from alignkit import files; print(files.HOME, files.INSTALLED, sep='|')"
    home, installed = place.call("python", "-c", code).strip().split("|")
    assert installed == "True" and not Path(home).is_relative_to(ROOT)


def test_the_six_lines_run(place):
    (story,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    short = story.replace("n=1000", "n=64").replace("beta=0.2)", "beta=0.2, steps=2, progress=False)")
    assert place.call("python", "-c", short + "\nprint(len(treated.history))").strip() == "2"


def test_ledger_and_catalog_are_there_and_the_evidence_is_as_fresh_as_in_the_clone(place):
    from alignkit import claims

    rows = json.loads(place.call("alignkit", "claims", "--json"))
    here = json.loads(json.dumps(claims.summarize()))
    assert {row["id"]: (row["verdict"], row["stale"]) for row in rows} == {
        row["id"]: (row["verdict"], row["stale"]) for row in here
    }
    assert json.loads(place.call("alignkit", "catalog", "granularity=step", "--json"))


def test_the_series_is_started_and_runs_in_a_folder_of_ones_own(place):
    assert "18 notebooks" in place.call("alignkit", "start", "the series")
    folder = place.folder / "the series"
    assert (folder / "figures" / "frontier.png").is_file()
    assert "not empty" in place.call("alignkit", "start", "the series", check=False)
    place.folder = folder
    place.call("alignkit", "run", "00", "--profile", "smoke")
    (executed,) = (folder / "runs" / "00_map").glob("*.ipynb")
    assert executed.name == "smoke-seed0.ipynb"
    assert "clone" in place.call("alignkit", "run", "00", "--in-place", check=False)
    assert "clone" in place.call("alignkit", "bench", check=False)
