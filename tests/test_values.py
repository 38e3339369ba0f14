"""Values that differ and change: groups, personal, distributional and max-min rewards, the watch, refreshing."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import binom

from alignkit import feedback, rewards
from alignkit.errors import AlignkitError, DataError
from alignkit.evaluation.drift import BETS, agreements, peek, usual_rate, watch
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.people import crowd
from alignkit.rewards.combined import WorstGroup, max_min_weights, tilted_means
from alignkit.rewards.losses import normal_preference_loss
from alignkit.rewards.personal import PersonalReward, sort_people, states
from alignkit.rewards.scalar import refresh
from alignkit.rewards.vector import Distributional, explained

KIND = Annotator(temperature=0.3, name="kind", weights={"polite": 3, "concise": -2, "helpful": 0})
TERSE = Annotator(temperature=0.3, name="terse", weights={"polite": -2, "concise": 3, "helpful": 0})


@pytest.fixture(scope="module")
def split_crowd():
    return crowd([(KIND, 0.75), (TERSE, 0.25)], n=8, seed=1)


@pytest.fixture(scope="module")
def unlabeled(world, patient):
    return feedback.draw_pairs(world, patient, 240, seed=4)


@pytest.fixture(scope="module")
def labels(world, unlabeled, split_crowd):
    return feedback.label(world, unlabeled, split_crowd, seed=2)


@pytest.fixture(scope="module")
def personal(labels, patient):
    return PersonalReward.fit(labels, patient, seed=0, progress=False)


# -- groups ----------------------------------------------------------------------------------------------------------


def test_a_crowd_has_its_shares_and_says_who_belongs_where(split_crowd, labels):
    assert sorted(person.group for person in split_crowd) == ["kind"] * 6 + ["terse"] * 2
    assert {*labels["annotator"]} == {person.name for person in split_crowd} and len({*labels["annotator"]}) == 8
    assert all(person.name.startswith(f"{person.group}-") for person in split_crowd)
    assert {repr(person.weights) for person in split_crowd if person.group == "terse"} == {repr(TERSE.weights)}


def test_shares_are_rounded_by_the_largest_remainder():
    groups = [person.group for person in crowd([(KIND, 1), (TERSE, 1), (Annotator(name="other"), 1)], n=8)]
    assert sorted(groups.count(name) for name in ("kind", "terse", "other")) == [2, 3, 3]


def test_bad_crowds_are_refused():
    with pytest.raises(AlignkitError, match="terse must be a finite number above 0, not 0"):
        crowd([(KIND, 1), (TERSE, 0.0)], n=5)
    with pytest.raises(AlignkitError, match="nobody is left for group 'terse'"):
        crowd([(KIND, 0.99), (TERSE, 0.01)], n=5)
    with pytest.raises(AlignkitError, match="names that differ"):
        crowd([(KIND, 1), (KIND, 1)], n=5)


# -- the personal reward ---------------------------------------------------------------------------------------------


def test_planted_groups_are_found_by_linear_mixture():
    rng = np.random.default_rng(0)
    truth, who = np.repeat([0, 1], 5), np.arange(300) % 10
    x = rng.normal(size=(300, 4))
    direction = np.array([[3, 0, 0, 0], [0, 3, 0, 0.0]])[truth[who]]
    takes = rng.random(300) < 1 / (1 + np.exp(-(x * direction).sum(1)))
    gap = np.where(takes[:, None], x, -x)
    weights, posterior = sort_people(gap, who, kinds=2, seed=1)
    found = posterior.argmax(1)
    assert (found == truth).all() or (found == 1 - truth).all()
    assert sorted(np.abs(weights).argmax(1)) == [0, 1]


def test_planted_groups_are_found_in_texts(personal, split_crowd):
    group = {person.name: person.group for person in split_crowd}
    found = personal.people.to_numpy().argmax(1)
    truth = np.array([group[name] == "terse" for name in personal.people.index])
    assert max(np.mean(found == truth), np.mean(found != truth)) >= 7 / 8
    assert np.isclose(personal.shares.sum(), 1) and 0.1 < personal.shares.min() < 0.4


def test_one_kind_is_bradley_terry(labels, patient):
    options = {"seed": 5, "epochs": 0.5, "progress": False}
    one = PersonalReward.fit(labels, patient, kinds=1, **options)
    plain = rewards.BradleyTerry.fit(labels, patient, **options)
    some = labels["prompt"][:20], labels["chosen"][:20]
    assert np.allclose(one(*some).scores, plain(*some).scores, atol=1e-6)


def test_the_posterior_sharpens_and_serves_its_own(personal, world, unlabeled):
    gain = []
    for person in (KIND, TERSE):
        their = feedback.label(world, unlabeled, person.but(temperature=0.05), seed=9)
        few, many = (personal.infer(their.select(range(n))) for n in (1, 60))
        assert many.max() > max(0.95, few.max() - 1e-6)
        gain.append(many.argmax())
        told, untold = (agreements(r, their).mean() for r in (personal.for_annotator(many), personal))
        assert told > untold + (0.1 if person is TERSE else -0.05)  # the average is nearly the majority's already
    assert gain[0] != gain[1]
    assert np.allclose(personal.infer(None), personal.shares)


def test_the_posterior_is_bayes_rule(personal, labels):
    few = labels.select(range(3))
    gap = np.stack([h(few["prompt"], few["chosen"]).scores - h(few["prompt"], few["rejected"]).scores
                    for h in personal.heads()], axis=1)  # fmt: skip
    odds = personal.shares * (1 / (1 + np.exp(-gap))).prod(0)
    assert np.allclose(personal.infer(few), odds / odds.sum())


def test_with_none_everyone_is_a_kind(labels, patient):
    names = [name.partition("-")[0] for name in labels["annotator"]]
    two = labels.remove_columns("annotator").add_column("annotator", names)
    fit = PersonalReward.fit(two, patient, kinds=None, epochs=0.3, progress=False)
    assert list(fit.people.index) == ["kind", "terse"] and np.array_equal(fit.people.to_numpy(), np.eye(2))


def test_states_times_head_is_the_score(personal, labels):
    batch = personal.backbone.encode(labels["prompt"][:7], labels["chosen"][:7])
    by_hand = states(personal, batch) @ personal.model.score.weight.T
    assert torch.allclose(by_hand, personal.outputs(batch), atol=1e-4)


def test_what_is_saved_is_what_comes_back(personal, labels, patient, tmp_path):
    some = labels["prompt"][:5], labels["chosen"][:5]
    again = PersonalReward.load(personal.save(tmp_path / "personal"))
    assert np.allclose(again.shares, personal.shares) and np.allclose(again(*some).scores, personal(*some).scores)
    averse = Distributional.new(patient, outputs=2).with_quantile(0.1)
    back = Distributional.load(averse.save(tmp_path / "distributional"))
    assert back.quantile == 0.1 and np.allclose(back(*some).scores, averse(*some).scores, atol=1e-5)


def test_bad_people_are_refused(personal, labels, patient):
    with pytest.raises(DataError, match="annotator"):
        PersonalReward.fit(labels.remove_columns("annotator"), patient)
    with pytest.raises(DataError, match="9 kinds of people but 8 annotators"):
        PersonalReward.fit(labels, patient, kinds=9)
    with pytest.raises(AlignkitError, match="2 numbers >= 0 that sum to 1"):
        personal.for_annotator([0.5, 0.2, 0.3])


# -- the distributional reward ---------------------------------------------------------------------------------------


def test_the_spread_is_larger_where_groups_disagree(tiny, world):
    """Three answers: good to all, bad to all, and one that half of the people love and half hate."""
    prompt, rng = world.prompts()[0], np.random.default_rng(0)
    texts = ["happy to help .", "do not waste my time .", "it all depends on many things ."]
    worth = np.array([[1, -1, 3], [1, -1, -3.0]])
    rows = []
    for _ in range(1500):
        i, j = rng.permutation(3)[:2]
        u = worth[rng.integers(2)]
        won = rng.random() < 1 / (1 + np.exp(u[j] - u[i]))
        rows.append((prompt, texts[i] if won else texts[j], texts[j] if won else texts[i]))
    prompts, chosen, rejected = map(list, zip(*rows, strict=True))
    pairs = Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})
    model = Distributional.fit(pairs, tiny, epochs=6, learning_rate=1e-2, progress=False)
    mean, spread = model.distribution([prompt] * 3, texts)
    assert spread[2] > 2 * max(spread[0], spread[1])
    assert mean[0] > mean[2] > mean[1]
    averse = model.with_quantile(0.05)([prompt] * 3, texts).scores
    assert averse.argmin() == 2 and model([prompt] * 3, texts).scores.argmin() == 1


def test_preference_of_normals_by_hand():
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    loss = normal_preference_loss(one, zero, 0.6 * one, 0.8 * one)  # Phi(1 / sqrt(0.36 + 0.64)) = Phi(1)
    assert torch.allclose(torch.exp(-loss), torch.tensor(0.8413447, dtype=torch.float64), atol=1e-6)
    assert explained(np.array([1.0, -1.0]), np.array([1.0, 1.0])) == 0.5


def test_bad_quantiles_are_refused(patient):
    with pytest.raises(AlignkitError, match="between 0 and 1"):
        Distributional.new(patient, outputs=2).with_quantile(1.0)


# -- max-min ---------------------------------------------------------------------------------------------------------


def test_max_min_by_hand():
    assert np.allclose(max_min_weights(np.eye(2)[:, None, :], 0.5), 0.5, atol=1e-4)
    # the second group gets more whatever is done: all weight to the first
    scores = np.array([[[1.0, 0.0]], [[5.0, 6.0]]])
    assert np.allclose(max_min_weights(scores, 0.5), [1, 0], atol=1e-4)


def test_max_min_beats_every_grid_point_and_levels_the_groups():
    rng = np.random.default_rng(3)
    scores, beta = rng.normal(size=(2, 5, 40)), 0.4
    w = max_min_weights(scores, beta)
    got = tilted_means(scores, w, beta)
    assert 0.01 < w.min() and abs(got[0] - got[1]) < 1e-3  # both count, so both get the same

    def goal(w):
        logits = np.tensordot(w, scores, 1) / beta
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return (p * scores).sum(-1).mean(-1).min() - beta * (p * np.log(p * 40)).sum(-1).mean()

    assert goal(w) >= max(goal(np.array([a, 1 - a])) for a in np.linspace(0, 1, 201)) - 1e-6


def test_worst_group_is_a_weighted_sum_in_common_units(patient, world):
    long, short = (lambda p, c: [len(x.split()) for x in c]), (lambda p, c: [-3.0 * len(x.split()) for x in c])
    fair = WorstGroup.fit({"long": long, "short": short}, patient, world.prompts()[:6], n=16)
    assert np.allclose(fair.weights, 0.5, atol=0.02)  # opposed wishes in equal units cancel
    said = fair(["x"] * 2, ["a b c", "a"])
    assert np.allclose(said.aspects["long"], -said.aspects["short"])
    by_hand = WorstGroup({"long": long, "short": short}, [0.25, 0.75], unit=[1, 3])
    assert np.allclose(by_hand(["x"], ["a b c d"]).scores, 0.25 * 4 - 0.75 * 4)


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(AlignkitError, match="as many weights >= 0"):
        WorstGroup({"a": len, "b": len}, weights)


def test_bad_scores_are_refused():
    with pytest.raises(AlignkitError, match="groups, prompts, samples"):
        max_min_weights(np.zeros((2, 3)), 0.5)
    with pytest.raises(AlignkitError, match="beta must be a finite number above 0"):
        max_min_weights(np.zeros((2, 3, 4)), 0.0)


# -- the watch -------------------------------------------------------------------------------------------------------


def test_evidence_by_hand():
    seen = watch([1, 0], rate=0.5)
    in_play = (1 / 2) * (1 - BETS)  # half of the capital was in play, and lost its bets
    first, second = in_play + 1 / 2, (in_play + 1 / 6) * (1 + BETS) + 1 / 3
    assert np.allclose(seen.evidence, [first.mean(), second.mean()])
    assert watch([], rate=0.5).alarm is None


def test_false_alarms_stay_below_the_level_and_peeking_does_not():
    rng, alpha = np.random.default_rng(1), 0.05
    streams = rng.random((400, 300)) < 0.7
    honest = np.mean([watch(s, 0.7, alpha).alarm is not None for s in streams])
    naive = np.mean([peek(s, 0.7, alpha) is not None for s in streams])
    assert honest <= alpha
    assert naive > 2 * alpha


def test_the_evidence_does_not_grow_on_average():
    streams = np.array(list(itertools.product([0, 1], repeat=8)))
    chance = np.where(streams, 0.6, 0.4).prod(1)
    assert chance @ [watch(s, 0.6).evidence[-1] for s in streams] == pytest.approx(1)


def test_a_planted_change_is_found():
    rng = np.random.default_rng(4)
    alarms = [watch(np.r_[rng.random(100) < 0.75, rng.random(200) < 0.45], 0.7).alarm for _ in range(50)]
    assert sum(a is not None and a > 100 for a in alarms) >= 45
    assert np.median([a or 300 for a in alarms]) < 220


def test_the_usual_rate_is_a_lower_bound():
    assert 0.55 < usual_rate([1] * 70 + [0] * 30) < 0.65
    assert usual_rate([1] * 700 + [0] * 300) > usual_rate([1] * 70 + [0] * 30)
    bounds = np.array([usual_rate([1] * k + [0] * (30 - k), 0.95) for k in range(31)])
    assert binom.pmf(np.arange(31), 30, 0.8)[bounds > 0.8].sum() <= 0.05  # the level is kept
    assert (np.diff(bounds) > 0).all() and bounds[0] == 0


def test_bad_streams_are_refused():
    with pytest.raises(AlignkitError, match="flat list of numbers"):
        watch([1, 2], 0.5)
    with pytest.raises(AlignkitError, match="rate and alpha must lie between"):
        watch([1, 0], 1.0)
    with pytest.raises(AlignkitError, match="no labels"):
        usual_rate([])


# -- refreshing ------------------------------------------------------------------------------------------------------


def test_refreshing_learns_the_new_and_leaves_the_old_reward_alone(world, unlabeled, patient):
    was, now = (feedback.label(world, unlabeled, person.but(temperature=0.05), seed=6) for person in (KIND, TERSE))
    old = rewards.BradleyTerry.fit(was, patient, progress=False)
    before = old(was["prompt"], was["chosen"]).scores
    fresh = refresh(old, now, epochs=2, progress=False)
    assert agreements(fresh, now).mean() > agreements(old, now).mean() + 0.15
    assert np.array_equal(before, old(was["prompt"], was["chosen"]).scores)
    replayed = refresh(old, now, was, weight=4.0, epochs=2, progress=False)
    assert agreements(replayed, was).mean() > agreements(fresh, was).mean() + 0.1


def test_bad_refreshing_is_refused(labels, patient):
    old = rewards.BradleyTerry.new(patient)
    with pytest.raises(AlignkitError, match="weight must be at least 0"):
        refresh(old, labels, labels, weight=-1)
    with pytest.raises(DataError, match="empty"):
        refresh(old, labels.select([]))


def test_a_personal_reward_of_nobody_in_particular_is_the_average_over_its_shares(world, tiny):
    reward = PersonalReward.new(tiny, seed=0, outputs=2)
    reward.shares = np.array([0.9, 0.1])
    prompts = world.prompts("seen")[:4]
    answers = [world.ideal(prompt) for prompt in prompts]
    one, other = (head(prompts, answers).scores for head in reward.heads())
    assert not np.allclose(one, other)
    assert np.allclose(reward(prompts, answers).scores, 0.9 * one + 0.1 * other)
    assert np.allclose(reward.for_annotator(None)(prompts, answers).scores, reward(prompts, answers).scores)
