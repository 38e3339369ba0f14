"""The reward benchmark: what is in it, and what gold, chance, ties and bad rewards score on it."""

import math

import numpy as np
import pytest
from datasets import Dataset

from alignkit import evaluation, rewards, worlds
from alignkit.errors import AlignkitError, DataError, RewardError
from alignkit.evaluation.benchmark import TIES, Writer, best_point, ties_score, variance_share
from alignkit.evaluation.perturb import for_world
from alignkit.worlds.assistant import FAULTS


@pytest.fixture(scope="module")
def benchmark(world):
    return evaluation.build_benchmark(world, per_subset=40, ties=10, seed=5)


def summary(reward, benchmark):
    return evaluation.assess(reward, benchmark).summary


# --- what is in it


def test_columns_and_counts_are_reward_bench_2s(benchmark):
    assert benchmark.column_names == [
        "id", "prompt", "chosen", "rejected", "num_correct", "num_incorrect", "total_completions", "models", "subset",
        "additional_metadata",
    ]  # fmt: skip
    assert isinstance(benchmark, Dataset)
    assert len(set(benchmark["id"])) == len(benchmark) == 40 * len(FAULTS) + 2 * 10
    for row in benchmark:
        assert (row["num_correct"], row["num_incorrect"]) == (len(row["chosen"]), len(row["rejected"]))
        assert row["total_completions"] == len(row["models"]) == row["num_correct"] + row["num_incorrect"]
        assert len(row["rejected"]) == 3 and len(set(row["chosen"] + row["rejected"])) == row["total_completions"]


def test_it_survives_a_file(benchmark, tmp_path):
    benchmark.to_json(tmp_path / "bench.jsonl")
    again = Dataset.from_json(str(tmp_path / "bench.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert summary(lambda p, c: [len(t) for t in c], again) == summary(lambda p, c: [len(t) for t in c], benchmark)


def test_categories_are_complete_and_disjoint(world, benchmark):
    assert set(benchmark["subset"]) == {*FAULTS, TIES}
    for row in benchmark:
        assert not any(any(world.faults(row["prompt"], text)) for text in row["chosen"])
        found = [set(world.faults(row["prompt"], text)) - {""} for text in row["rejected"]]
        if row["subset"] == TIES:
            assert all(len(kinds) == 1 for kinds in found)
        else:
            assert found == [{row["subset"]}] * 3


def test_faults_occur_only_where_they_can(world, benchmark):
    harmful = {row["subset"]: set() for row in benchmark}
    for row in benchmark:
        harmful[row["subset"]].add(world.topic(row["prompt"]).harmful)
    assert harmful["unsafe"] == {True}
    assert harmful["over-cautious"] == harmful["wrong"] == {False}
    assert harmful["rude"] == {True, False}


def test_ties_share_gold_and_come_in_twos(world, benchmark):
    rows = {row["id"]: row for row in benchmark if row["subset"] == TIES}
    tied = [name for name in rows if name.startswith("tied:")]
    assert len(tied) == 10
    for name in tied:
        row, ref = rows[name], rows[name.replace("tied", "ref")]
        gold = world.gold([row["prompt"]] * 4, row["chosen"])
        assert np.ptp(gold) < 1e-9 and len(ref["chosen"]) == 1
        assert ref["chosen"][0] == row["chosen"][0] and ref["rejected"] == row["rejected"]


def test_splits_and_seeds(world):
    def build(**options):
        return evaluation.build_benchmark(world, per_subset=4, ties=2, **options).to_list()

    assert build(seed=1) == build(seed=1) != build(seed=2)
    assert {row["prompt"] for row in build(split="seen")} <= set(world.prompts("seen"))
    assert {row["prompt"] for row in build()} <= set(world.prompts("test"))


# --- what is scored on it


def test_gold_is_perfect_and_its_opposite_never_right(world, benchmark):
    marks = summary(rewards.GoldReward(world), benchmark)
    assert (marks["pairwise"], marks["best of 4"], marks["ties"]) == (1, 1, pytest.approx(1))
    marks = summary(lambda p, c: -world.gold(p, c), benchmark)
    assert (marks["pairwise"], marks["best of 4"], marks["ties"]) == (0, 0, 0)


def test_chance(world):
    marks = summary(rewards.RandomReward(3), evaluation.build_benchmark(world, per_subset=150, ties=0, seed=5))
    assert abs(marks["pairwise"] - 0.5) < 0.05
    assert abs(marks["best of 4"] - 0.25) < 0.05
    assert math.isnan(marks["ties"])


def test_a_reward_that_says_nothing_shares_every_point(benchmark):
    found = evaluation.assess(lambda p, c: [7.0] * len(c), benchmark)
    assert (found.table["pairwise"] == 0.5).all() and (found.table["best of 4"] == 0.25).all()
    assert found.summary["ties"] == found.summary["variance share"] == found.summary["calibration error"] == 0


def test_an_insult_detector_sees_insults_and_nothing_else(world, benchmark):
    said = Writer(world).said["insult"]
    table = evaluation.assess(lambda p, c: [-sum(s in text for s in said) for text in c], benchmark).table
    assert table.loc["rude", "best of 4"] == 1
    assert (table.drop("rude")["best of 4"] == 0.25).all()
    assert list(table.index) == list(FAULTS)


def test_best_of_4_by_hand():
    assert best_point(np.array([2.0]), np.array([1.0, 0.0, 1.9])) == 1
    assert best_point(np.array([2.0]), np.array([3.0, 0.0, 0.0])) == 0
    assert best_point(np.array([2.0]), np.array([2.0, 2.0, 0.0])) == pytest.approx(1 / 3)


def test_ties_score_by_hand():
    wrong = np.array([0.0, -1.0])
    apart = {"tied:0": (np.array([1.0, 1.5]), wrong), "ref:0": (np.array([1.5]), wrong)}
    assert ties_score(apart) == pytest.approx(1.0)  # gaps 1 and 1.5, spread 0.5
    wide = {"tied:0": (np.array([1.0, 3.0]), wrong), "ref:0": (np.array([3.0]), wrong)}
    assert ties_score(wide) == pytest.approx(0.6)  # in order, but the right ones are too far apart
    low = {"tied:0": (np.array([-0.5, 1.5]), wrong), "ref:0": (np.array([1.5]), wrong)}
    assert ties_score(low) == pytest.approx(0.3)  # only the reference row is in order
    near = {"tied:0": (np.array([1.0, 1.5]), wrong), "ref:0": (np.array([1.0]), wrong - 0.6 + 1.2)}
    assert ties_score(near) == pytest.approx(0.8)  # the reference's gap, 0.4, is smaller than the spread, 0.5


def test_calibration_by_hand():
    # always as sure as sigmoid(log 3) = 0.75; right in two of three pairs of the only row
    row = {"id": "rude:0", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "rude"}
    score = {"a": 0.0, "b": -math.log(3), "c": -math.log(3), "d": math.log(3)}
    marks = summary(lambda p, c: [score[text] for text in c], Dataset.from_list([row]))
    assert marks["calibration error"] == pytest.approx(0.75 - 2 / 3)
    assert marks["pairwise"] == pytest.approx(2 / 3) and marks["best of 4"] == 0


def test_variance_share_by_hand():
    assert variance_share([np.array([0.0, 2.0]), np.array([0.0, 2.0])]) == 1
    assert variance_share([np.array([0.0, 2.0]), np.array([2.0, 4.0])]) == pytest.approx(0.5)  # within 1, in all 2
    assert variance_share([np.array([1.0, 1.0]), np.array([2.0, 2.0])]) == 0


# --- rewriting it


def test_gold_does_not_feel_what_keeps_the_meaning(world, benchmark):
    gold = rewards.GoldReward(world)
    for name in ("other words", "sentences reordered"):
        after = evaluation.rewritten(benchmark, for_world(world)[name], seed=2)
        assert after["chosen"] != benchmark["chosen"] and after["id"] == benchmark["id"]
        assert evaluation.order_flips(gold, benchmark, after) == 0
        assert evaluation.assess(gold, after).summary == evaluation.assess(gold, benchmark).summary


def test_a_reward_that_reads_the_first_word_feels_the_order(world, benchmark):
    after = evaluation.rewritten(benchmark, for_world(world)["sentences reordered"], seed=2)
    assert evaluation.order_flips(lambda p, c: [ord(text[0]) for text in c], benchmark, after) > 0.1
    assert evaluation.order_flips(lambda p, c: [len(text) for text in c], benchmark, after) == 0


def test_only_one_side_can_be_rewritten(world, benchmark):
    after = evaluation.rewritten(benchmark, for_world(world)["the world's padding"], sides=("rejected",))
    assert after["chosen"] == benchmark["chosen"] and after["rejected"] != benchmark["rejected"]
    assert summary(lambda p, c: [len(text) for text in c], after)["pairwise"] < 0.2


def test_flips_need_the_same_rows(world, benchmark):
    with pytest.raises(DataError, match="same rows"):
        evaluation.order_flips(rewards.GoldReward(world), benchmark, benchmark.select(range(9)))
    with pytest.raises(DataError, match="no completion"):
        evaluation.order_flips(rewards.GoldReward(world), benchmark, benchmark)


# --- bad input


def test_a_reward_that_is_not_finite_is_named(benchmark):
    with pytest.raises(RewardError, match="nothing.*nan for row 0"):
        evaluation.assess(rewards.as_reward(lambda p, c: [float("nan")] * len(c), name="nothing"), benchmark)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [{k: v for k, v in r.items() if k != "rejected"} for r in rows], "missing.*rejected"),
        (lambda rows: [*rows[:1], {**rows[1], "chosen": []}, *rows[2:]], "row 1: 'chosen'"),
        (lambda rows: [r for r in rows if r["id"] != "ref:3"], "'tied:3' has no partner 'ref:3'"),
    ],
)
def test_a_broken_benchmark_is_named(world, benchmark, change, words):
    with pytest.raises(DataError, match=words):
        evaluation.assess(rewards.GoldReward(world), Dataset.from_list(change(benchmark.to_list())))


def test_what_cannot_be_built(world):
    with pytest.raises(AlignkitError, match="per_subset=0"):
        evaluation.build_benchmark(world, per_subset=0)
    with pytest.raises(AlignkitError, match="at a gap of 50"):
        evaluation.build_benchmark(world, per_subset=1, ties=0, gap=50)
    with pytest.raises(AlignkitError, match="'chain' has no|knows faults"):
        evaluation.build_benchmark(worlds.load("arithmetic"))
    with pytest.raises(AlignkitError, match="no fault 'ugly'"):
        Writer(world).can("ugly", world.prompts()[0])
