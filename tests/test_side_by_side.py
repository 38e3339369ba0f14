"""Rewards side by side: same task, same budget; what is good for gold shows, and what says nothing does not."""

import json
import re

import numpy as np
import pytest

from alignkit import evaluation, rewards
from alignkit.errors import AlignkitError
from alignkit.evaluation import Scaled, spread
from alignkit.files import NOTEBOOKS


@pytest.fixture(scope="module")
def table(world, patient):
    gold = rewards.GoldReward(world)
    return evaluation.side_by_side(
        world, patient, {"gold": gold, "noise": rewards.RandomReward(1), "flat": lambda p, c: np.zeros(len(c))},
        told={"gold": {"decisions": 7}}, steps=8, prompts_per_step=8, group_size=16, n=16, n_reference=500, prompts=3,
        learning_rate=5e-4, beta=0.2, seed=1, progress=False,
    )  # fmt: skip


def test_it_has_a_row_a_reward_and_what_was_told(table, world):
    assert list(table.index) == ["untreated", "gold", "noise", "flat"]
    assert table.loc["gold", "decisions"] == 7 and np.isnan(table.loc["noise", "decisions"])
    assert set(world.symptoms([], [])) <= set(table.columns)


def test_gold_gains_and_noise_does_not(table):
    gained = table["gold gained (sd)"]
    assert gained["gold"] > 0.2 and abs(gained["noise"]) < 0.2
    assert gained["untreated"] == 0


def test_at_equal_distance_gold_is_worth_more_than_noise(table):
    equal = table["gold at 0.5 nats (sd)"]
    assert equal["gold"] > equal["noise"] + 0.5
    assert np.isnan(equal["flat"])  # a reward without differences carries a policy nowhere


def test_a_reward_without_differences_moves_nothing(table):
    assert table.loc["flat", "KL (nats)"] < 0.02 and abs(table.loc["flat", "gold gained (sd)"]) < 0.15


def test_scaling_divides_scores_and_finer_credit():
    def fine(prompts, completions):
        return rewards.Judgement(np.array([4.0]), steps=[np.array([1.0, 3.0])], ends=[[2, 5]])

    said = Scaled(rewards.FunctionReward(fine, rewards.RandomReward().card), 2.0)(["p"], ["a . b"])
    assert said.scores.tolist() == [2.0] and said.steps[0].tolist() == [0.5, 1.5] and said.ends == [[2, 5]]
    assert spread(lambda p, c: [1.0, 3.0, 5.0, 5.0], ["p"] * 4, ["c"] * 4, 2) == 0.5


def test_the_optimizer_and_the_length_are_the_callers(world, patient):
    asked = []

    def untouched(policy, prompts, reward, **options):
        asked.append(options)
        return policy

    table = evaluation.side_by_side(world, patient, {"gold": rewards.GoldReward(world)}, treat=untouched, steps=1,
                                    prompts_per_step=2, group_size=3, n=2, n_reference=20, prompts=2, max_new_tokens=9,
                                    clip=0.1)  # fmt: skip
    assert asked[0]["steps"] == 1 and asked[0]["max_new_tokens"] == 9 and asked[0]["clip"] == 0.1
    assert table.loc["gold", "gold gained (sd)"] == 0 and table.loc["gold", "KL (nats)"] == pytest.approx(0, abs=1e-6)


def test_numbers_below_one_are_named(world, patient):
    with pytest.raises(AlignkitError, match="n_reference must be"):
        evaluation.side_by_side(world, patient, {}, steps=1, prompts_per_step=1, group_size=2, n=1, n_reference=0,
                                prompts=1)  # fmt: skip


def test_the_notebooks_that_share_a_table_share_its_budget():
    """03 to 06 lay their tables beside each other, so what a treatment may cost must be the same in all."""
    cells = []
    for stem in ("03_construction_basis", "04_format", "05_expression", "06_granularity"):
        code = ["".join(c["source"]) for c in json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text("utf-8"))["cells"]]
        cells.append(re.findall(r"^BUDGET = .*?^ANSWERS = .*?$", "\n".join(code), re.DOTALL | re.MULTILINE))
    assert [len(found) for found in cells] == [1] * 4 and len({found[0] for found in cells}) == 1
