"""What a treatment bought: the yardstick, curves read at a KL, and costs."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from alignkit import evaluation, optimize, worlds
from alignkit.errors import AlignkitError
from alignkit.evaluation import treatments
from alignkit.evaluation.core import frontier


def gold_of(world):
    def gold(prompts, completions):
        return world.gold(prompts, completions)

    return gold


@pytest.fixture(scope="module")
def rod(world, patient):
    return treatments.Yardstick(world, patient, world.prompts("seen")[::25], n=400, seed=5)


@pytest.fixture(scope="module")
def treated(world, patient):
    return optimize.rloo(patient, world.prompts(), gold_of(world), beta=0.3, steps=10, prompts_per_step=8,
                         group_size=8, learning_rate=1e-3, seed=4, progress=False)  # fmt: skip


def test_the_untreated_patient_gains_nothing(rod, patient):
    measured = rod.measure(patient, n=64, seed=9)
    assert measured["kl"] == pytest.approx(0, abs=1e-6) and abs(measured["gain"]) < 0.25
    assert rod.optimum(0.0) == pytest.approx(0, abs=1e-9)


def test_a_treated_policy_gains_but_never_more_than_the_optimum(rod, treated):
    measured = rod.measure(treated, n=64, seed=9)
    assert measured["kl"] > 0.1 and measured["gain"] > 0.3
    assert 0.3 < measured["efficiency"] < 1.1
    assert measured["gain"] / rod.optimum(measured["kl"]) == pytest.approx(measured["efficiency"])


def test_the_optimum_gains_more_the_farther_it_may_go(rod):
    gains = [rod.optimum(kl) for kl in (0.0, 1e-4, 0.01, 0.1, 0.5, 1.0)]
    assert gains == sorted(gains) and gains[1] > 0
    assert np.isnan(rod.optimum(50.0)) and np.isfinite(rod.optimum(rod.best.reach))


def test_best_of_n_stays_below_the_optimum_and_random_choice_gains_nothing(rod):
    curve = rod.best_of_n([2, 4])
    assert curve["gain"].is_monotonic_increasing and (curve["efficiency"] < 1).all() and (curve["gain"] > 0).all()
    noise = np.random.default_rng(0).normal(size=rod.gold.shape)
    assert abs(rod.best_of_n([4], noise)["gain"].item()) < 0.3 * curve["gain"].iloc[-1]


def test_a_frontier_lengthened_by_guides_agrees_where_both_reach_and_reaches_farther(rod, treated):
    longer = rod.lengthened([treated], n=200, seed=6)
    for kl in (0.3, 0.6):
        assert longer.optimum(kl) == pytest.approx(rod.optimum(kl), rel=0.12)
    assert longer.best.reach > rod.best.reach > 0.5


def test_weighted_frontier_is_exact_in_the_bandit():
    rng = np.random.default_rng(1)
    reference, reward = rng.dirichlet(np.ones(6)), rng.normal(size=6)
    other = rng.dirichlet(np.full(6, 20.0))
    drawn = rng.choice(6, size=(1, 200_000), p=other)
    betas = [2.0, 0.7, 0.3]
    found = frontier(reward[drawn], betas, log_weight=np.log(reference / other)[drawn])
    for k, beta in enumerate(betas):
        best = reference * np.exp(reward / beta)
        best /= best.sum()
        assert found.value[k] == pytest.approx(best @ reward, abs=0.02)
        assert found.kl[k] == pytest.approx(best @ np.log(best / reference), abs=0.02)


def test_equal_weights_are_the_plain_frontier():
    reward = np.random.default_rng(0).normal(size=(3, 500))
    betas = np.array([2.0, 0.5])
    plain, weighted = frontier(reward, betas), frontier(reward, betas, log_weight=np.full_like(reward, 3.0))
    assert np.allclose(plain.kl, weighted.kl) and np.allclose(plain.value, weighted.value)
    assert np.allclose(plain.ess, weighted.ess)


def test_a_curve_is_read_between_its_points_and_not_beyond():
    points = pd.DataFrame({"kl": [2.0, 1.0], "gain": [1.5, 1.0]})
    assert treatments.at(points, 0.5) == pytest.approx(0.5)
    assert treatments.at(points, 1.5) == pytest.approx(1.25)
    assert np.isnan(treatments.at(points, 2.1))
    with pytest.raises(AlignkitError, match="columns kl and gain"):
        treatments.at(points[["kl"]], 1.0)


def test_efficiency_is_nan_where_the_curve_or_the_optimum_ends(rod):
    points = pd.DataFrame({"kl": [0.5], "gain": [rod.optimum(0.5)]})
    share = treatments.efficiency_at(points, rod, (0.5, 1.0))
    assert share[0.5] == pytest.approx(1.0) and np.isnan(share[1.0])


def test_cost_adds_up_the_legs(treated, patient, pairs):
    taught = optimize.dpo(patient, pairs.select(range(32)), epochs=1, batch_size=16, progress=False)
    once, twice = treatments.cost([treated]), treatments.cost([treated, treated])
    assert once["completions_sampled"] == 640 and twice["completions_sampled"] == 1280
    both = treatments.cost([treated, taught])
    assert both["completions_sampled"] == 640 and both["backward_rows"] == once["backward_rows"] + 64
    assert both["forward_rows"] == once["forward_rows"] + 128


def test_supervised_fine_tuning_costs_what_it_reads(patient, pairs):
    """40 rows, one pass: 40 completions forward and back, and no reference. Pairs: both sides, and once a reference."""
    shown = Dataset.from_dict({"prompt": pairs["prompt"][:40], "completion": pairs["chosen"][:40]})
    taught = optimize.sft(patient, shown, epochs=1, batch_size=20, progress=False)
    bill = treatments.cost([taught])
    assert (bill["forward_rows"], bill["backward_rows"]) == (40, 40)
    twice = treatments.cost([optimize.dpo(patient, pairs.select(range(20)), epochs=2, batch_size=20, progress=False)])
    assert (twice["forward_rows"], twice["backward_rows"]) == (2 * 40 + 40, 2 * 40)
    thumbs = shown.select(range(20)).add_column("label", [True, False] * 10)
    kto = treatments.cost([optimize.kto(patient, thumbs, epochs=1, batch_size=20, progress=False)])
    assert (kto["forward_rows"], kto["backward_rows"]) == (2 * 20 + 40, 20)


def test_columns_reach_gold_and_the_length_is_the_callers(patient):
    class Quiz(worlds.World):
        name, version, aspects = "quiz", "quiz-v1", ("right",)

        def gold_aspects(self, prompts, completions, answer):
            return {"right": np.array([float(len(a)) for a in answer])}

        def gold(self, prompts, completions, answer):
            return self.gold_aspects(prompts, completions, answer)["right"]

    asked = Dataset.from_dict({"prompt": ["how do i make tea ?", "how do i bake bread ?"], "answer": ["a", "bbb"]})
    rod = treatments.Yardstick(Quiz(), patient, asked, n=3, max_new_tokens=4)
    assert rod.gold.tolist() == [[1] * 3, [3] * 3] and max(len(t.split()) for texts in rod.said for t in texts) <= 4
    assert rod.measure(patient, n=2)["gain"] == 0 and rod.measure(patient, n=2)["tokens"] <= 4
    shown = evaluation.chart(Quiz(), patient, prompts=asked, n=2, max_new_tokens=4)
    assert shown.table.loc[("gold", "gold"), "before"] == 2
    assert shown.samples["completion"].str.split().str.len().max() <= 4


def test_the_frontier_starts_at_the_reference_and_ends_where_samples_do():
    reward = np.random.default_rng(2).normal(size=(2, 4000))
    found = frontier(reward, betas=np.geomspace(2, 0.2, 20))
    first = found.kl.min()
    assert found.start == pytest.approx(reward.mean()) and found.at(0.0) == pytest.approx(reward.mean())
    assert found.at(first / 2) == pytest.approx(found.start + np.sqrt(first), rel=0.1)  # of a normal: sqrt(2 KL)
    assert found.start < found.at(first / 2) < found.at(first * 1.001) and np.isnan(found.at(found.reach * 1.01))


def test_too_few_samples_are_refused(world, patient):
    with pytest.raises(AlignkitError, match="1,000 or more"):
        treatments.Yardstick(world, patient, world.prompts("seen")[:1], n=1)
