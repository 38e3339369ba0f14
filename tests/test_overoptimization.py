"""Over-optimization: Gao's forms and their peaks, ensembles and averaged weights, shaped rewards."""

import numpy as np
import pytest
import torch

from alignkit import rewards
from alignkit.errors import AlignkitError, RewardError
from alignkit.evaluation import scaling
from alignkit.policy import load_policy

KL = np.linspace(0.0, 9.0, 19)


# --- Gao's forms


@pytest.mark.parametrize(("form", "alpha", "beta"), [("best-of-n", 1.2, 0.3), ("rl", 0.9, 0.6), ("line", 0.7, 0.0)])
def test_a_fit_recovers_the_curve_that_made_the_points(form, alpha, beta):
    truth = scaling.Fit(form, alpha, beta, 0.0)
    found = scaling.fit_form(KL, truth.gain(KL), form)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta)) and found.rmse < 1e-12


def test_the_forms_are_those_of_the_paper():
    assert scaling.Fit("best-of-n", 1.0, 0.25, 0).gain(4.0) == pytest.approx(2 * (1 - 0.25 * 2))
    assert scaling.Fit("rl", 1.0, 0.5, 0).gain(4.0) == pytest.approx(2 * (1 - 0.5 * np.log(2)))
    assert scaling.Fit("rl", 1.0, 0.5, 0).gain(0.0) == 0.0


@pytest.mark.parametrize(("form", "alpha", "beta", "kl", "gain"), [
    ("best-of-n", 1.0, 0.25, 4.0, 1.0),  # d* = 1 / (2 * 0.25) = 2
    ("rl", 1.0, 1.0, 1.0, 1.0),  # d* = exp(1 / 1 - 1) = 1
])  # fmt: skip
def test_peaks_by_hand_and_highest_of_all(form, alpha, beta, kl, gain):
    fit = scaling.Fit(form, alpha, beta, 0.0)
    assert (fit.peak_kl, fit.peak_gain) == pytest.approx((kl, gain))
    assert fit.gain(np.linspace(0, 20, 500)).max() <= gain + 1e-12


def test_what_never_turns_has_no_peak():
    for fit in (scaling.Fit("line", 1.0, 0.0, 0.0), scaling.Fit("best-of-n", 1.0, -0.1, 0.0)):
        assert fit.peak_kl == np.inf == fit.peak_gain


def test_bootstrap_intervals_hold_the_truth_and_shrink_with_rows():
    rng = np.random.default_rng(0)
    truth = scaling.Fit("best-of-n", 1.2, 0.3, 0.0)
    rows = truth.gain(KL) + 0.3 * rng.normal(size=(64, 1)) * np.sqrt(KL) + 0.1 * rng.normal(size=(64, len(KL)))
    kl = np.tile(KL, (64, 1))
    few, many = (scaling.bootstrap_fit(kl[:n], rows[:n], "best-of-n", resamples=200) for n in (8, 64))
    for name, value in {"alpha": 1.2, "beta": 0.3, "peak_kl": 4.0}.items():
        assert many.low[name] <= value <= many.high[name], name
    assert (many.high - many.low)["alpha"] < (few.high - few.low)["alpha"]
    assert many.equals(scaling.bootstrap_fit(kl, rows, "best-of-n", resamples=200))


@pytest.mark.parametrize(("form", "beta"), [("best-of-n", 0.3), ("rl", 0.6)])
def test_held_out_distances_tell_the_forms_apart(form, beta):
    gain = scaling.Fit(form, 1.2, beta, 0.0).gain(KL) + 0.01 * np.random.default_rng(1).normal(size=len(KL))
    assert scaling.compare_forms(KL, gain, upto=4.0)["beyond"].idxmin() == form


def test_highest_and_safe_kl_read_measured_points():
    kl, gain = [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.8, 0.6, 0.2]
    assert scaling.highest(kl, gain) == (2.0, 0.8)
    assert scaling.safe_kl(kl, gain, 0.1) == pytest.approx(2.5)
    assert scaling.safe_kl(kl[::-1], gain[::-1], 0.4) == pytest.approx(3.5)
    assert scaling.safe_kl(kl, gain, 0.7) == np.inf


@pytest.mark.parametrize(("call", "says"), [
    (lambda: scaling.fit_form([1, 2], [1.0], "line"), "one length"),
    (lambda: scaling.fit_form([1, np.nan], [1, 2], "line"), "point 1"),
    (lambda: scaling.fit_form([-1, 2], [1, 2], "line"), "point 0"),
    (lambda: scaling.fit_form([0, 2], [0, 2], "rl"), "too few"),
    (lambda: scaling.fit_form([1, 2], [1, 2], "cubic"), "line, best-of-n, rl"),
    (lambda: scaling.compare_forms(KL, KL, upto=100), "one side of 100 nats"),
    (lambda: scaling.bootstrap_fit(KL, KL, "line"), "two rows or more"),
])  # fmt: skip
def test_bad_points_are_named(call, says):
    with pytest.raises(AlignkitError, match=says):
        call()


# --- ensembles


def words(prompts, completions):
    return [float(len(text.split())) for text in completions]


def letters(prompts, completions):
    return [float(len(text)) for text in completions]


TEXTS = (["p"] * 4, ["a", "a bb", "ccc dd e", "ffffffff"])


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty"])
def test_equal_members_are_one_member(how):
    assert rewards.Ensemble([words] * 3, how)(*TEXTS).scores == pytest.approx(words(*TEXTS))


def test_by_hand():
    three = np.array([1.0, 1.0, -2.0])
    assert rewards.combined_scores(three) == 0.0
    assert rewards.combined_scores(three, "worst") == -2.0
    assert rewards.combined_scores(three, "uncertainty", weight=0.5) == -1.0


def test_worst_is_below_mean_and_caution_grows_with_the_weight():
    scores = np.random.default_rng(0).normal(size=(5, 3, 40))
    mean, worst = (rewards.combined_scores(scores, how) for how in ("mean", "worst"))
    some, much = (rewards.combined_scores(scores, "uncertainty", weight) for weight in (0.1, 1.0))
    assert worst.shape == (3, 40) and (worst <= mean).all() and (much < some).all() and (some < mean).all()
    assert rewards.combined_scores(scores, "uncertainty", weight=0.0) == pytest.approx(mean)


def test_a_committees_aspects_are_its_members_scores():
    judged = rewards.Ensemble([words, letters], how="worst")(*TEXTS)
    assert [*judged.aspects] == ["member 0", "member 1"]
    assert judged.scores.tolist() == np.minimum(*judged.aspects.values()).tolist()


def test_cards_say_where_members_come_from(tiny):
    learned = rewards.BradleyTerry.new(tiny)
    assert rewards.Ensemble([learned, learned]).card.construction_basis == "data-driven"
    assert rewards.Ensemble([learned, words]).card.construction_basis == "hybrid"


@pytest.mark.parametrize(("call", "says"), [
    (lambda: rewards.Ensemble([]), "at least one member"),
    (lambda: rewards.Ensemble([words], how="median"), "mean, worst, uncertainty"),
    (lambda: rewards.Ensemble([words], weight=-1), "weight must be at least 0"),
    (lambda: rewards.Ensemble(["words"]), "callable"),
])  # fmt: skip
def test_bad_ensembles_are_named(call, says):
    with pytest.raises(AlignkitError, match=says):
        call()


# --- averaged weights


def test_the_average_of_one_model_is_that_model_and_of_two_lies_between(tiny):
    first, second = (rewards.BradleyTerry.new(tiny, seed) for seed in (0, 1))
    asked = ["how do i make tea ?"] * 3, ["thank you for asking .", "boil water for the tea .", ""]
    assert rewards.averaged_weights([first])(*asked).scores == pytest.approx(first(*asked).scores)
    both = rewards.averaged_weights([first, second])
    # only the heads differ, and scores are linear in the head
    assert both(*asked).scores == pytest.approx((first(*asked).scores + second(*asked).scores) / 2, abs=1e-6)
    assert both.card.source == "2401.12187" and first.card.name == "bradley-terry"


def test_averaging_changes_no_member(tiny):
    first, second = (rewards.BradleyTerry.new(tiny, seed) for seed in (0, 1))
    before = first.model.score.weight.clone()
    rewards.averaged_weights([first, second]).model.score.weight.data.zero_()
    assert torch.equal(first.model.score.weight, before)


def test_averaging_rejects_what_lies_in_another_valley(patient):
    mine, theirs = (rewards.BradleyTerry.new(policy) for policy in (patient, load_policy("assistant", patient=1)))
    small = rewards.BradleyTerry.new(load_policy("assistant-small"))
    for other, says in ((theirs, "another pretrained backbone"), (small, "another kind, pooling or size"),
                        (rewards.BradleyTerry.new(patient, pooling="last"), "pooling"),
                        (rewards.Binary.new(patient), "kind")):  # fmt: skip
        with pytest.raises(RewardError, match=f"model 1 .*{says}"):
            rewards.averaged_weights([mine, other])
    with pytest.raises(RewardError, match="at least one"):
        rewards.averaged_weights([])


def test_the_same_patient_loaded_twice_is_one_start(patient):
    again = rewards.BradleyTerry.new(load_policy("assistant"), seed=1)
    assert rewards.averaged_weights([rewards.BradleyTerry.new(patient), again]).card.name == "warm"


def test_same_heads_start_alike_and_learn_in_their_own_order(pairs, tiny):
    heads = [rewards.SameHead.new(tiny, seed).model.score.weight for seed in (0, 5)]
    assert torch.equal(*heads)
    few = pairs.select(range(64))
    fits = [rewards.SameHead.fit(few, tiny, seed=seed, progress=False).model.score.weight for seed in (0, 5)]
    assert not torch.equal(*fits)


# --- shaping


def shaped(scores, *how):
    return rewards.Shaped(lambda p, c: scores, *how)(["p"] * len(scores), ["c"] * len(scores)).scores


@pytest.mark.parametrize("how", ["sigmoid", "log-sigmoid"])
def test_shaping_keeps_the_order_and_has_its_ceiling(how):
    after = shaped(np.linspace(-5, 5, 101), how, 0.5, 0.7)
    assert (np.diff(after) > 0).all() and after.max() <= (0 if how == "log-sigmoid" else 1)


def test_shaping_by_hand():
    assert shaped([3.0], "sigmoid", 3.0)[0] == 0.5
    assert shaped([3.0], "log-sigmoid", 3.0)[0] == pytest.approx(-np.log(2))
    assert shaped([9.0], "sigmoid", 3.0, 2.0)[0] == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert shaped([-800.0, 800.0], "log-sigmoid") == pytest.approx([-800.0, 0.0])


def test_a_shaped_reward_takes_a_level_for_each_prompt():
    levels = rewards.levels(["p", "q"], np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]))
    assert levels == {"p": 2.0, "q": 6.0}
    reward = rewards.Shaped(words, "sigmoid", levels)
    assert reward(["p", "q"], ["a b", "a b c d e f"]).scores == pytest.approx([0.5, 0.5])
    assert reward.card.source == "2502.18770" and reward.card.construction_basis == "rule-based"


@pytest.mark.parametrize(("call", "says"), [
    (lambda: rewards.Shaped(words, "tanh"), "sigmoid, log-sigmoid"),
    (lambda: rewards.Shaped(words, unit=0), "above 0"),
    (lambda: rewards.Shaped(words, "sigmoid", {"p": 1.0})(["p", "x"], ["a", "b"]), "row 1: no level"),
    (lambda: rewards.levels(["p"], np.zeros((2, 3))), "one row of scores for each prompt"),
])  # fmt: skip
def test_bad_shaping_is_named(call, says):
    with pytest.raises(AlignkitError, match=says):
        call()
