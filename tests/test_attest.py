"""Evidence attested by value: old code and new code on one seed, in a small project with a history of its own."""

import json
import math
import subprocess

import nbformat
import pytest
from typer.testing import CliRunner

from alignkit.claims import attest as attestation
from alignkit.claims import fingerprint
from alignkit.claims.ledger import dumps
from alignkit.errors import AlignkitError
from alignkit.lab.cli import app

NOTEBOOK = "97_small"
TOOL = """
import json, sys
from pathlib import Path
VALUE = 0.5
def main():
    options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    out = Path(options["--out"], "results", sys.argv[2], f"{options['--profile']}-seed{options['--seeds']}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    code = Path(__file__).read_text()
    out.write_text(json.dumps({"notebook": sys.argv[2], "profile": "thorough", "seed": 3, "rules": {}, "parameters": {},
                               "values": {"gap": VALUE}, "series": {"curve": [1.0, 2.0], "seconds": [len(code)]},
                               "fingerprint": {"notebook": "n", "package": str(len(code))}}))
"""


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with one commit and its evidence; `change(old, new)` edits its code and commits."""
    root, results = tmp_path / "project", tmp_path / "project" / "data" / "results"
    (root / "notebooks").mkdir(parents=True)
    (root / "alignkit").mkdir()
    (root / "pyproject.toml").write_text('[project.scripts]\nalignkit = "tool:main"\n')
    (root / "tool.py").write_text(TOOL)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    nbformat.write(notebook, root / "notebooks" / f"{NOTEBOOK}.ipynb")
    (root / "alignkit" / "__init__.py").touch()
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    for module in (attestation, fingerprint):
        monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.setattr(module, "NOTEBOOKS", root / "notebooks")
    monkeypatch.setattr(fingerprint, "HOME", root)
    monkeypatch.setattr(attestation, "RESULTS", results)
    monkeypatch.setattr("alignkit.claims.ledger.RESULTS", results)
    monkeypatch.setitem(fingerprint.git.__kwdefaults__, "cwd", root)
    hashed = lambda source: {"notebook": "n", "package": str(len((root / "tool.py").read_text()))}  # noqa: E731
    monkeypatch.setattr(fingerprint, "fingerprint_of", hashed)

    class Project:
        folder, commit = root, git(root, "rev-parse", "HEAD")

        def record(self, seed):
            made_from = {"notebook": "n", "package": str(len(TOOL)), "world": {}, "model": {}, "model_files": {}}
            result = {"notebook": NOTEBOOK, "profile": "thorough", "seed": seed, "values": {"gap": 0.7}, "rules": {},
                      "series": {}, "commit": self.commit, "fingerprint": made_from}  # fmt: skip
            path = results / NOTEBOOK / f"thorough-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dumps(result))

        def result(self, seed):
            return json.loads((results / NOTEBOOK / f"thorough-seed{seed}.json").read_text())

        def change(self, old, new):
            (root / "tool.py").write_text((root / "tool.py").read_text().replace(old, new))
            git(root, "commit", "-qam", "change")

        def attest(self, **options):
            return attestation.attest(NOTEBOOK, work=tmp_path / "work", **options)

    project = Project()
    project.record(3)
    project.record(4)
    return project


def test_nothing_is_run_where_nothing_changed(project, monkeypatch):
    monkeypatch.setattr(attestation, "_run", None)
    assert project.attest() is None


def test_equal_values_attest_all_seeds(project):
    project.change("VALUE = 0.5", "VALUE = 1 / 2")
    found = project.attest()
    assert (found.status, found.largest, found.seed, found.base) == ("equal", 0.0, 3, project.commit)
    for seed in (3, 4):
        noted = project.result(seed)["attested"]
        assert [item["commit"] for item in noted] == [git(project.folder, "rev-parse", "HEAD")]
        assert noted[0]["processor"] and project.result(seed)["values"] == {"gap": 0.7}  # recorded digits stay
    assert project.attest() is None
    project.change("VALUE = 1 / 2", "VALUE = 2 / 4 * 1")
    assert project.attest().base == found.commit  # the chain goes on from what was attested last


def test_other_values_stay_stale_unless_explained(project):
    project.change("VALUE = 0.5", "VALUE = 0.50002")
    found = project.attest()
    assert (found.status, found.where) == ("differs", "values.gap") and found.largest == pytest.approx(2e-5, rel=1e-3)
    assert attestation.changed(NOTEBOOK)
    assert attestation.last_commit(project.result(3)) == project.commit
    explained = project.attest(reason="a fault was mended")
    assert (explained.status, explained.reason) == ("explained", "a fault was mended")
    assert not attestation.changed(NOTEBOOK) and len(project.result(4)["attested"]) == 2


def test_uncommitted_code_is_refused(project):
    (project.folder / "tool.py").write_text(TOOL + "# more\n")
    with pytest.raises(AlignkitError, match="commit your changes first"):
        project.attest()


def test_a_run_that_fails_names_notebook_and_cause(project):
    project.change("VALUE = 0.5", "VALUE = 1 / 0")
    with pytest.raises(AlignkitError, match=f"{NOTEBOOK} seed 3 .*ZeroDivisionError"):
        project.attest()
    assert "attested" not in project.result(3)


def test_an_unknown_commit_is_told(project):
    project.commit = "0" * 40
    project.record(3)
    project.change("VALUE = 0.5", "VALUE = 1 / 2")
    with pytest.raises(AlignkitError, match="can't check out commit 000000000000"):
        project.attest()


def test_the_command_says_what_differs(project, monkeypatch):
    monkeypatch.chdir(project.folder.parent)
    project.change("VALUE = 0.5", "VALUE = 0.625")
    done = CliRunner().invoke(app, ["attest", "97", "--jobs", "1"])
    assert done.exit_code == 1 and "differs" in done.stdout and "values.gap" in done.stdout
    done = CliRunner().invoke(app, ["attest", "97", "--because", "a fault was mended"])
    assert done.exit_code == 0 and "explained" in done.stdout


def test_differences_are_relative_and_leave_out_clocks():
    old = {"values": {"a": 1000.0, "b": 0.0}, "series": {"t": {"x": [1.0, None], "seconds": 3.0}}}
    new = {"values": {"a": 1000.0005, "b": 5e-7}, "series": {"t": {"x": [1.000005, None], "seconds": 9.0}}}
    assert attestation.differences(old, new) == {}
    new["values"]["a"], new["series"]["t"]["x"] = 1001.0, [1.0, 2.0]
    found = attestation.differences(old, new)
    assert list(found) == ["series.t.x[1]", "values.a"] and math.isinf(found["series.t.x[1]"])
    assert found["values.a"] == pytest.approx(1e-3, rel=1e-2)
