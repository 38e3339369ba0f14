"""The runner: a sweep of small notebooks, what it leaves behind, and what it does when things go wrong.

One real sweep (two notebooks, one failing) is run once and looked at by many tests; the rest needs no kernel.
"""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from alignkit import claims
from alignkit.claims import fingerprint
from alignkit.errors import AlignkitError
from alignkit.lab import clean
from alignkit.lab import sweep as runner
from alignkit.lab.worker import Execution, Job

CLAIM = {
    "id": "gap",
    "notebook": "01_good",
    "phase": "reward",
    "dimension": "format",
    "statement": "a is above b",
    "source": "2305.18290",
    "kind": "seeded",
    "measure": "a - b",
    "rule": {"above": 0},
    "could_fail_because": "b may be larger",
}
OPEN = "from alignkit import claims\nledger = claims.open('01_good', seed=seed, profile=profile)"
GOOD = [
    OPEN,
    "import os, sys\nprint(seed, profile, os.environ['OMP_NUM_THREADS'], sys.executable)\nprint(os.getcwd())",
    "from tqdm import tqdm as bar\nfrom tqdm.auto import tqdm\nfor _ in tqdm(bar(range(3))): pass",
    "import warnings\nwarnings.warn('this one matters')\nobject()",
    "ledger.record('gap', 0.5)\nledger.close()",
]


def write_notebook(path, *code, prose="# Title", parameters='seed = 0  # shown\nprofile = "standard"'):
    cells = [nbformat.v4.new_markdown_cell(prose, id="title")]
    if parameters:
        tags = {"tags": ["parameters"]}
        cells.append(nbformat.v4.new_code_cell(parameters, metadata=tags, id="parameters"))
    cells += [nbformat.v4.new_code_cell(source, id=f"code-{i}") for i, source in enumerate(code)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def job_for(notebook, out, seed=0, profile="standard", **parameters):
    return Job(notebook, seed, profile, out, 60, parameters)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep over a good and a failing notebook, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("a sweep")
    good = write_notebook(folder / "notebooks" / "01_good.ipynb", *GOOD)
    bad = write_notebook(folder / "notebooks" / "02_bad.ipynb", "x = 1", "# to be\nraise KeyError('lost')", "y = 2")
    (folder / "claims.yaml").write_text(yaml.safe_dump([CLAIM]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_CLAIMS", str(folder / "claims.yaml"))
        outcomes = runner.run([str(bad), str(good)], jobs=2, out=folder / "runs", timeout=60)
        yield folder, good, bad, {outcome.job.stem: outcome for outcome in outcomes}


@pytest.fixture
def again(sweep, tmp_path, monkeypatch):
    """A copy of the sweep's good job to work on, and no way to execute it."""
    _, good, _, outcomes = sweep
    notebook = write_notebook(tmp_path / "01_good.ipynb", *GOOD)
    job = job_for(notebook, tmp_path / "runs")
    for kind in ("executed", "result"):
        target = getattr(job, kind)
        target.parent.mkdir(parents=True)
        target.write_text(getattr(outcomes["01_good"].job, kind).read_text())
    monkeypatch.setenv("ALIGNKIT_CLAIMS", str(tmp_path / "claims.yaml"))
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "results")
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([CLAIM]))

    def no_kernel(*_):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr("alignkit.lab.sweep.Execution.work", no_kernel)
    return job


# --- the real sweep


def test_a_failing_notebook_does_not_stop_the_others(sweep):
    _, _, _, outcomes = sweep
    assert outcomes["01_good"].status == "done" and outcomes["01_good"].seconds > 0
    assert outcomes["02_bad"].status == "failed"


def test_a_failure_names_cell_line_and_exception(sweep):
    _, _, _, outcomes = sweep
    bad = outcomes["02_bad"]
    assert (bad.cell, bad.line, bad.exception, bad.message) == (
        3,
        "raise KeyError('lost')",
        "KeyError",
        "'lost'",
    )
    assert "code cell 3" in bad.describe() and "KeyError: 'lost'" in bad.describe()
    partial = nbformat.read(bad.job.failed, as_version=4)
    counts = [cell.execution_count for cell in partial.cells if cell.cell_type == "code"]
    assert counts == [1, 2, 3, None]  # the cell's number is the one the reader sees
    assert partial.cells[3].outputs[0].ename == "KeyError"
    assert not bad.job.result.exists() and not bad.job.executed.exists()


def test_kernel_is_this_interpreter_on_one_thread_in_the_notebooks_folder(sweep):
    _, good, _, outcomes = sweep
    notebook = nbformat.read(outcomes["01_good"].job.executed, as_version=4)
    said = notebook.cells[3].outputs[0].text.splitlines()
    assert said[0] == f"0 standard 1 {clean.without_paths(sys.executable)}"
    assert said[1] == clean.without_paths(str(good.parent))


def test_executed_copy_has_no_traces_of_the_run(sweep):
    _, good, _, outcomes = sweep
    text = outcomes["01_good"].job.executed.read_text()
    for trace in ("epilogue", "widget", "iopub", "it/s", str(Path.home()) + "/"):
        assert trace not in text, trace
    executed, source = nbformat.reads(text, as_version=4), nbformat.read(good, as_version=4)
    nbformat.validate(executed)
    assert [cell.id for cell in executed.cells] == [cell.id for cell in source.cells]
    assert [cell.source for cell in executed.cells] == [cell.source for cell in source.cells]
    codes = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert "version" not in executed.metadata.language_info
    assert codes[3].outputs == []  # progress bars only
    warning, result = codes[4].outputs
    assert "this one matters" in warning.text and "ipykernel_" not in warning.text
    assert result.data["text/plain"] == "<object at 0x...>"


def test_result_is_stored_with_its_time(sweep):
    _, good, _, outcomes = sweep
    result = claims.read_result(outcomes["01_good"].job.result)
    assert result["values"] == {"gap": 0.5} and result["seconds"] == outcomes["01_good"].seconds
    assert result["fingerprint"]["notebook"] == fingerprint.code_hash(fingerprint.read_code(good))
    assert fingerprint.closure(fingerprint.read_code(good)) == {}  # the ledger and the runner don't make results
    assert "parameters" not in result


def test_nothing_else_is_left_behind(sweep):
    folder, _, _, _ = sweep
    left = sorted(str(path.relative_to(folder / "runs")) for path in (folder / "runs").rglob("*") if path.is_file())
    assert left == [
        "01_good/standard-seed0.ipynb",
        "02_bad/standard-seed0.failed.ipynb",
        "results/01_good/standard-seed0.json",
    ]


# --- resuming


def run_again(job, **options):
    (outcome,) = runner.run([job.notebook], out=job.out, **options)
    return outcome


def test_what_is_done_and_unchanged_is_skipped(again):
    outcome = run_again(again)
    assert outcome.status == "skipped" and outcome.seconds > 0
    with pytest.raises(AssertionError, match="kernel"):
        run_again(again, fresh=True)


def test_reworded_prose_is_taken_over_without_running(again):
    write_notebook(again.notebook, *GOOD, prose="# Reworded")
    assert run_again(again).status == "skipped"
    executed = nbformat.read(again.executed, as_version=4)
    assert executed.cells[0].source == "# Reworded" and executed.cells[3].outputs


def change_code(job, folder):
    write_notebook(job.notebook, *GOOD[:-1], GOOD[-1].replace("0.5", "0.6"))


def change_rule(job, folder):
    (folder / "claims.yaml").write_text(yaml.safe_dump([CLAIM | {"rule": {"above": 0.1}}]))


def add_claim(job, folder):
    (folder / "claims.yaml").write_text(yaml.safe_dump([CLAIM, CLAIM | {"id": "new"}]))


def change_module(job, folder):
    result = json.loads(job.result.read_text())
    result["fingerprint"]["package"] = "0" * 16
    job.result.write_text(json.dumps(result))


def change_evidence(job, folder):
    result = json.loads(job.result.read_text())
    result["fingerprint"]["evidence"] = "0" * 16
    job.result.write_text(json.dumps(result))


def lose_copy(job, folder):
    job.executed.unlink()


def damage_result(job, folder):
    job.result.write_text("{")


@pytest.mark.parametrize(
    "change", [change_code, change_rule, add_claim, change_module, change_evidence, lose_copy, damage_result]
)
def test_a_change_means_another_run(again, tmp_path, change):
    assert runner.done_before(again)
    change(again, tmp_path)
    assert not runner.done_before(again)


def test_other_parameters_mean_another_run(again):
    assert not runner.done_before(Job(**{**again.__dict__, "parameters": {"beta": 1}}))


# --- in place


def test_in_place_puts_seed_0_over_its_notebook(again):
    assert run_again(again, in_place=True).status == "skipped"
    assert again.notebook.read_text() == again.executed.read_text()
    assert claims.result_path(claims.RESULTS, "01_good", "standard", 0).is_file()
    cell = nbformat.read(again.notebook, as_version=4).cells[1]
    assert cell.source == 'seed = 0  # shown\nprofile = "standard"'


def test_in_place_stores_evidence(again, tmp_path):
    job = job_for(again.notebook, tmp_path / "runs", seed=3, profile="thorough")
    source = job.notebook.read_text()
    job.result.write_text("evidence")
    runner.put_in_place(job, tmp_path / "results")
    assert (tmp_path / "results" / "01_good" / "thorough-seed3.json").read_text() == "evidence"
    assert job.notebook.read_text() == source


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"profile": "smoke"}, "smoke"),
        ({"profile": "standard", "seeds": [3]}, "nothing to store"),
        ({"profile": "thorough", "seeds": [0, 100]}, "nothing to store"),
        ({"parameters": {"beta": 1}}, "--param"),
    ],
)
def test_in_place_refuses_what_does_not_belong_there(again, options, told):
    with pytest.raises(AlignkitError, match=told):
        run_again(again, in_place=True, **options)


# --- what goes wrong


def test_a_full_disk_fails_one_job_and_not_the_others(again, tmp_path, monkeypatch):
    other = write_notebook(tmp_path / "03_other.ipynb", "x = 1")

    def full(path, text):
        raise AlignkitError(f"could not write {path}: No space left on device")

    monkeypatch.setattr("alignkit.lab.sweep.write_atomic", full)
    monkeypatch.setattr("alignkit.lab.sweep.Execution.work", lambda _: {"status": "done", "seconds": 1.0})
    monkeypatch.setattr("alignkit.lab.sweep._goes_in_place", lambda profile, seed: seed == 0)
    monkeypatch.setattr(
        "alignkit.lab.sweep.put_in_place",
        lambda job, _: full(job.notebook, "") if "01" in job.stem else None,
    )
    outcomes = runner.run([again.notebook, other], out=tmp_path / "runs", in_place=True)
    assert [outcome.status for outcome in outcomes] == ["failed", "done"]
    assert "No space left" in outcomes[0].message


def test_a_kernel_that_is_killed_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    killed = write_notebook(tmp_path / "01_x.ipynb", "x = 1", "import os; os.kill(os.getpid(), 9)", "y = 2")
    good = write_notebook(tmp_path / "02_y.ipynb", "x = 1")
    (tmp_path / "claims.yaml").write_text("[]")
    monkeypatch.setenv("ALIGNKIT_CLAIMS", str(tmp_path / "claims.yaml"))
    first, second = runner.run([killed, good], out=tmp_path / "runs", jobs=1, timeout=60)
    assert (first.status, first.cell, second.status) == ("failed", 3, "done")
    assert "memory" in first.message
    partial = nbformat.read(first.job.failed, as_version=4)
    assert [cell.execution_count for cell in partial.cells[1:3]] == [1, 2]


def failed(job):
    found = Execution(job).work()
    assert found["status"] == "failed"
    return found["message"]


def test_a_notebook_without_parameters_cell_is_told_the_remedy(tmp_path):
    notebook = write_notebook(tmp_path / "01_x.ipynb", "x = 1", parameters=None)
    assert "tagged 'parameters'" in failed(job_for(notebook, tmp_path))


def test_a_parameter_the_notebook_does_not_have_is_named(tmp_path):
    notebook = write_notebook(tmp_path / "01_x.ipynb", "x = 1")
    assert "does not set beta; it sets seed, profile" in failed(job_for(notebook, tmp_path, beta=1))


@pytest.mark.parametrize(
    ("text", "told"),
    [("{}", "not a notebook"), ("{", "not a notebook"), ('{\n<<<<<<< HEAD\n "cells": []', "line 2"),
     (None, "can't read")],
)  # fmt: skip
def test_what_is_no_notebook_is_told(tmp_path, text, told):
    notebook = tmp_path / "01_x.ipynb"
    if text is not None:
        notebook.write_text(text)
    message = failed(job_for(notebook, tmp_path))
    assert told in message and str(notebook) in message


def test_timeouts_and_dead_kernels_are_in_plain_words(tmp_path):
    execution = Execution(job_for(write_notebook(tmp_path / "01_x.ipynb", "x = 1"), tmp_path))
    execution.number, execution.cell = 4, nbformat.v4.new_code_cell("# why\ntrain()")
    found = execution.failure(CellTimeoutError("late"))
    assert found["message"].startswith("not done after 60 s") and (found["cell"], found["line"]) == (4, "train()")
    assert "memory" in execution.failure(DeadKernelError("gone"))["message"]


def test_a_ledger_left_open_is_told(again, tmp_path):
    execution = Execution(again)
    execution.notebook = fingerprint.read_notebook(again.notebook)
    with pytest.raises(AlignkitError, match="01_good has claims but did not close its ledger"):
        execution.store(tmp_path / "nothing.json")


def test_the_terminal_gets_no_escapes_from_a_notebook(tmp_path):
    execution = Execution(job_for(write_notebook(tmp_path / "01_x.ipynb", "x = 1"), tmp_path))
    message = execution.failure(AlignkitError("red \x1b[31mtext\x07\nnext"))["message"]
    assert message == "red \\x1b[31mtext\\x07\nnext"


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(again, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AlignkitError, match="could not write"):
        runner.run([again.notebook], out=tmp_path / "file" / "runs", fresh=True)


@pytest.mark.parametrize("presses", [1, 3])
def test_an_interrupted_sweep_keeps_what_is_finished(tmp_path, monkeypatch, presses):
    fast = write_notebook(tmp_path / "01_quick.ipynb", "x = 1")
    told = tmp_path / "pid"  # the kernel's, and a process that it started
    start = "import os, subprocess\nfrom alignkit.files import write_atomic\nchild = subprocess.Popen(['sleep', '100'])"
    start += f"\nwrite_atomic({str(told)!r}, f'{{os.getpid()}} {{child.pid}}')"
    slow = write_notebook(tmp_path / "02_slow.ipynb", start, "import time; time.sleep(100)")
    (tmp_path / "claims.yaml").write_text("[]")
    monkeypatch.setenv("ALIGNKIT_CLAIMS", str(tmp_path / "claims.yaml"))
    command = [sys.executable, "-c", "from alignkit.lab.cli import main; main()", "run", fast.name, slow.name]
    # a suite started in the background ignores Ctrl-C, and so would what it starts
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    sweep = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    said = ""
    while not ("02_slow seed 0: 3 code cells" in said and "01_quick seed 0: done" in said):
        line = sweep.stderr.readline()
        assert line, f"the sweep ended early: {said}"
        said += line
    wait_for(told.exists)
    for _ in range(presses):
        sweep.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, error = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and "interrupted" in error and "Traceback" not in error
    wait_for(lambda: not any(map(alive, told.read_text().split())))
    left = sorted(path.name for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert left == ["standard-seed0.ipynb", "standard-seed0.json"]
    for notebook, finished in ((fast, True), (slow, False)):
        assert runner.done_before(job_for(notebook, tmp_path / "runs")) == finished


def alive(pid):
    """Whether this process still runs; one that has ended and that nobody waits for doesn't."""
    try:
        return psutil.Process(int(pid)).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# --- names and seeds


def test_notebooks_by_name_number_and_path(tmp_path):
    folder = tmp_path / "notebooks"
    first, second = (write_notebook(folder / f"{name}.ipynb") for name in ("01_a", "02_b"))
    write_notebook(folder / "draft.ipynb")
    elsewhere = write_notebook(tmp_path / "my work" / "mine.ipynb")
    assert runner.find(folder=folder) == [first, second]
    assert runner.find(["02", "1", "02_b"], folder) == [second, first]
    assert runner.find([elsewhere], folder) == [elsewhere]
    for name in ("03", "01_", "b", "02_b.py"):
        with pytest.raises(AlignkitError, match="01_a, 02_b"):
            runner.find([name], folder)
    twin = write_notebook(tmp_path / "01_a.ipynb")
    with pytest.raises(AlignkitError, match="same name"):
        runner.find([first, twin], folder)


# --- cleaning


def test_parameters_keep_comments_and_spelling():
    source = 'seed = 0  # ß shown\nprofile: str = "standard"\nsizes = [\n    1,\n    2,\n]; k = 3'
    assert clean.set_parameters(source, {"seed": 0, "profile": "standard", "sizes": [1, 2]}) == source
    changed = clean.set_parameters(source, {"seed": 12, "profile": "smoke", "sizes": [9], "k": 4})
    assert changed == "seed = 12  # ß shown\nprofile: str = 'smoke'\nsizes = [9]; k = 4"


@pytest.mark.parametrize(
    ("stream", "left"),
    [
        ("10%|#  | 1/9 [00:01<00:08]\r100%|###| 9/9 [00:09<00:00]\n", ""),
        ("3it [00:01, 2.90it/s]\n", ""),
        ("TqdmWarning: IProgress not found. Please update jupyter\n", ""),
        ("UserWarning: gold is negative\n", "UserWarning: gold is negative\n"),
        ("10%|#  | 1/9\nRuntimeWarning: overflow\n", "RuntimeWarning: overflow\n"),
    ],
)
def test_stderr_keeps_only_what_matters(stream, left):
    output = nbformat.v4.new_output("stream", name="stderr", text=stream)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", execution_count=9, outputs=[output])])
    (cell,) = clean.clean(notebook).cells
    assert "".join(output.text for output in cell.outputs) == left
    assert cell.execution_count == 1


def test_cells_without_ids_get_stable_ones():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("a"), nbformat.v4.new_code_cell("b")])
    for cell in notebook.cells:
        del cell["id"]
    assert [cell.id for cell in clean.clean(notebook).cells] == ["cell-01", "cell-02"]
    nbformat.validate(notebook)


def test_paths_are_relative_to_the_project_and_the_home():
    text = clean.without_paths(f"{clean.ROOT}/data/x.csv in {Path.home()}/notes, {clean.ROOT}")
    assert text == "data/x.csv in ~/notes, ."
    assert clean.without_paths('File "/opt/py/site-packages/torch/nn.py"') == 'File "site-packages/torch/nn.py"'
