"""The comparison with TRL: that it times both sides and says what it did. How fast they are is not asserted."""

import json
import math
import sys
import time

import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from alignkit.errors import AlignkitError
from alignkit.lab.cli import app
from tests import bench


def a_row(**changes):
    row = dict.fromkeys(("ours", "trl", "trl_bare", "setup_ours", "setup_trl"), 0.01)
    ratios = {"ratio": 2.5, "ratio_low": 2.0, "ratio_high": 3.0, "trl_work_ratio": 1.5, "overhead": 0.4}
    return {"method": "dpo", "target": 2.0, "rounds": 1, "steps": 1, **row, **ratios, **changes}


SETTINGS = {
    "model": "m", "parameters": 7, "threads": 1, "precision": "float32", "batch": 2, "prompts": 1, "group": 2,
    "max_new_tokens": 3, "trl": "1", "torch": "2", "transformers": "5",
}  # fmt: skip


@pytest.fixture(scope="module")
def result():
    pytest.importorskip("trl")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as smaller:
        for name, value in {"BATCH": 8, "PROMPTS": 2, "GROUP": 4, "LIMIT": 16}.items():
            smaller.setattr(bench, name, value)
        out = bench.run(rounds=1, steps=1)
    assert torch.get_num_threads() == threads
    return out


@pytest.mark.slow
def test_every_method_is_timed_on_both_sides(result):
    assert [row["method"] for row in result["methods"]] == list(bench.TARGETS)
    for row in result["methods"]:
        for name in ("ours", "trl", "trl_bare", "ratio", "ratio_low", "ratio_high", "trl_work_ratio"):
            assert math.isfinite(row[name]) and row[name] > 0, (row["method"], name)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["ratio"] == pytest.approx(row["trl"] / row["ours"])  # of a single round
        assert row["overhead"] < 1
        assert row["setup_trl"] > 0


def test_the_machine_is_not_said_to_do_more_than_it_can(result):
    for used in result["utilization"]:
        assert 0 < used["utilization"] < 1
        assert used["flops"] < used["peak_flops"]


def test_longer_takes_longer(result):
    for name, sizes in (("batch", [8, 32, 128]), ("length", [8, 16, 32, 64])):
        rows = result["growth"][name]
        assert [row["pairs" if name == "batch" else "words"] for row in rows] == sizes
        assert rows[-1]["seconds"] > rows[0]["seconds"]


def test_it_is_json_and_tables(result):
    assert json.loads(json.dumps(result)) == result
    (header, rows, note), *rest = bench.tables(result)
    assert len(rows) == len(bench.TARGETS) and all(len(row) == len(header) for row in rows)
    assert "assistant" in note and len(rest) == 3


def test_tables_say_whether_a_target_is_met():
    rows = [a_row(), a_row(method="rloo", ratio=1.2), a_row(method="dpo_cached", target=None)]
    ((header, cells, _),) = bench.tables({"settings": SETTINGS, "methods": rows})
    column = header.index("target")
    assert [row[column] for row in cells] == ["2.0 met", "2.0 missed", ""]


def test_the_clock_counts_from_step_to_step():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    times = iter([100.0, 103.5, 104.0, 104.5, 106.0])  # entered, then one for each step: 0.5 s, 0.5 s, 1.5 s
    weight.sum().backward()
    with bench.Clock(lambda: next(times)) as clock:
        for _ in range(4):
            optimizer.step()
    optimizer.step()  # after it was left: not counted
    assert len(clock.ticks) == 4
    assert clock.step == pytest.approx(2.5 / 3)
    assert clock.setup == pytest.approx(3.5 - 2.5 / 3)


def test_one_thread_is_timed_by_its_cpu_seconds():
    assert torch.get_num_threads() == 1
    began = bench.seconds_now()
    time.sleep(0.2)  # nothing is computed
    assert bench.seconds_now() - began < 0.1


def test_parameters_that_multiply(patient):
    """By hand: a tied embedding once; four square and three oblong matrices in each of two layers."""
    config = patient.model.config
    by_hand = config.vocab_size * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert bench.multiplied_parameters(patient) == by_hand


def test_both_sides_get_the_same_rows(patient):
    work = bench.Work(patient, Dataset.from_dict({"prompt": list("pqrs"), "chosen": list("abcd"),
                                                  "rejected": list("efgh")}), [], None)  # fmt: skip
    rows = sorted(zip(*(work.rows[name] for name in ("prompt", "completion", "label")), strict=True))
    assert rows == [("p", "a", True), ("p", "e", False), ("q", "b", True), ("q", "f", False)]


def test_bad_input():
    with pytest.raises(AlignkitError, match="no ppo, sft; choose from dpo"):
        bench.run(["ppo", "sft"])
    for wrong in ({"threads": 0}, {"rounds": 0}, {"steps": 0}):
        with pytest.raises(AlignkitError, match="at least 1"):
            bench.run(["dpo"], **wrong)


def test_without_trl(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(AlignkitError, match=r"pip install 'alignkit\[dev\]'"):
        bench.run(["dpo"])


def test_command(monkeypatch):
    asked = {}

    def run(only, threads, rounds):
        asked.update(only=only, threads=threads, rounds=rounds)
        return {"settings": SETTINGS, "methods": [a_row()]}

    monkeypatch.setattr(bench, "run", run)
    shown = CliRunner().invoke(app, ["bench", "--only", "dpo", "--only", "kto", "--threads", "2"])
    assert shown.exit_code == 0 and asked == {"only": ["dpo", "kto"], "threads": 2, "rounds": 3}
    assert "2.0 met" in shown.output and "trainer's share" in shown.output
    printed = CliRunner().invoke(app, ["bench", "--json"])
    assert json.loads(printed.output)["methods"][0]["ratio"] == 2.5
