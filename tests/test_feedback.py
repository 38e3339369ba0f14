"""Simulated people choose as their formula says, and their labels come in TRL's columns."""

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats
from scipy.special import expit

from alignkit import feedback
from alignkit.errors import AlignkitError
from alignkit.feedback import Annotator

EXACT = Annotator(temperature=1e-6)


@pytest.fixture(scope="module")
def shown(world, patient):
    """Unlabeled pairs."""
    return feedback.draw_pairs(world, patient, 600, seed=1)


def columns(data, *names):
    return [data[name][:] for name in names]


def gaps(world, shown):
    """Differences of the two sides shown: in gold, and in words."""
    prompts, first, second = columns(shown, "prompt", "first", "second")
    longer = np.array([len(a.split()) - len(b.split()) for a, b in zip(first, second, strict=True)])
    return world.gold(prompts, first) - world.gold(prompts, second), longer


# -- one annotator ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 2.0},
        {"error": 0.2},
        {"position_bias": 0.7},
        {"length_bias": -0.1},
        {"temperature": 0.3, "error": 0.1, "position_bias": -1.0, "length_bias": 0.05},
    ],
)
def test_the_probability_of_a_choice_is_the_formula(world, shown, settings):
    s = {"temperature": 0.5, "error": 0.0, "position_bias": 0.0, "length_bias": 0.0} | settings
    gap, longer = gaps(world, shown)
    logit = gap / s["temperature"] + s["position_bias"] + s["length_bias"] * longer
    p = Annotator(**settings).prefers_first(world, *columns(shown, "prompt", "first", "second"))
    np.testing.assert_allclose(p, s["error"] + (1 - 2 * s["error"]) * expit(logit), atol=1e-12)
    assert p.min() >= s["error"] and p.max() <= 1 - s["error"] and p.std() > 0.05


def test_a_tiny_temperature_does_not_overflow(world, shown):
    gap, _ = gaps(world, shown)
    with np.errstate(all="raise", under="ignore"):
        p = EXACT.prefers_first(world, *columns(shown, "prompt", "first", "second"))
    np.testing.assert_allclose(p[np.abs(gap) > 1e-3], (gap > 0)[np.abs(gap) > 1e-3])
    assert (p[gap == 0] == 0.5).all() and (gap == 0).any()


def test_without_position_bias_the_order_does_not_matter(world, shown):
    turned = feedback.swap(shown)
    p, q = (Annotator().prefers_first(world, *columns(d, "prompt", "first", "second")) for d in (shown, turned))
    np.testing.assert_allclose(p + q, 1, atol=1e-12)
    biased = Annotator(position_bias=1.0)
    p, q = (biased.prefers_first(world, *columns(d, "prompt", "first", "second")) for d in (shown, turned))
    assert (p + q > 1).all()


def test_people_may_weigh_aspects_their_own_way(world, shown):
    prompts, first = columns(shown, "prompt", "first")
    aspects = world.gold_aspects(prompts, first)
    person = Annotator(weights={"polite": 3.0, "concise": 0.0})
    expected = sum(aspects[k] for k in ("helpful", "truthful", "harmless")) + 3 * aspects["polite"]
    np.testing.assert_allclose(person.utility(world, prompts, first), expected, atol=1e-12)
    np.testing.assert_allclose(Annotator().utility(world, prompts, first), world.gold(prompts, first), atol=1e-12)


def test_a_person_with_changes_is_otherwise_the_same():
    person = Annotator(temperature=0.3, length_bias=0.1, name="ann")
    assert person.but(error=0.2) == Annotator(temperature=0.3, length_bias=0.1, error=0.2, name="ann")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature must be a finite number above 0, not 0"),
        ({"temperature": -1.0}, "temperature must be a finite number above 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number above 0"),
        ({"stretch": 0}, "stretch must be a finite number above 0"),
        ({"error": 0.6}, "error must be between 0 and 0.5, not 0.6"),
        ({"error": -0.1}, "error must be between 0 and 0.5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(AlignkitError, match=message):
        Annotator(**settings)


def test_an_unknown_aspect_is_named_with_what_there_is(world, shown):
    with pytest.raises(AlignkitError, match="ann: no aspect 'witty' in world 'assistant'; it has helpful, .*concise"):
        feedback.label(world, shown, Annotator(weights={"witty": 1.0}, name="ann"))


# -- pairs and labels ------------------------------------------------------------------------------


def test_pairs_differ_and_come_from_the_asked_prompts_in_turn(world, shown):
    prompts, first, second = columns(shown, "prompt", "first", "second")
    assert len(shown) == 600 and all(a != b for a, b in zip(first, second, strict=True))
    counts = [prompts.count(p) for p in world.prompts("feedback")]
    assert sum(counts) == 600 and max(counts) - min(counts) <= 1


def test_two_equal_samples_are_drawn_again_and_given_up_at_last(toy, world):
    prompts = ["a", "b"]
    drawn = feedback.draw_pairs(world, toy, 200, seed=0, prompts=prompts)
    assert len(drawn) == 200 and all(row["first"] != row["second"] for row in drawn)

    class Parrot:
        def sample(self, prompts, n=1, seed=0, **options):
            return [["same"] * n for _ in prompts]

    assert len(feedback.draw_pairs(world, Parrot(), 5, prompts=prompts)) == 0


def test_labels_have_trls_columns_and_keep_both_sides(world, shown):
    labels = feedback.label(world, shown, Annotator(name="ann"), seed=2)
    assert labels.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert set(labels.column_names[3:]) == {"position", "p_chosen", "annotator"}
    for row, pair in zip(labels, shown, strict=True):
        sides = (pair["first"], pair["second"])
        assert (row["chosen"], row["rejected"]) == (sides if row["position"] == "first" else sides[::-1])
        assert row["prompt"] == pair["prompt"] and row["annotator"] == "ann"


def test_p_chosen_is_the_probability_of_this_choice_in_this_order(world, shown):
    person = Annotator(position_bias=0.8, error=0.05)
    labels = feedback.label(world, shown, person)
    p_first = person.prefers_first(world, *columns(shown, "prompt", "first", "second"))
    took_first = np.array(labels["position"][:]) == "first"
    np.testing.assert_allclose(labels["p_chosen"][:], np.where(took_first, p_first, 1 - p_first), atol=1e-12)
    assert 0.1 < took_first.mean() < 0.9


@pytest.mark.parametrize("person", [Annotator(), Annotator(error=0.3), Annotator(position_bias=1.5, length_bias=0.1)])
def test_choices_are_as_frequent_as_their_probability(world, shown, person):
    p = person.prefers_first(world, *columns(shown, "prompt", "first", "second"))
    took = np.array([np.array(feedback.label(world, shown, person, s)["position"][:]) == "first" for s in range(5)])
    for low, high in ((0, 0.35), (0.35, 0.65), (0.65, 1)):
        part = (p >= low) & (p <= high)
        error = np.sqrt((p[part] * (1 - p[part])).sum() / 5) / part.sum()
        assert part.sum() > 15 and abs(took[:, part].mean() - p[part].mean()) < 4 * error


def test_seeds_reproduce_and_differ(world, patient, shown):
    again = feedback.draw_pairs(world, patient, 600, seed=1)
    assert again["first"][:] == shown["first"][:] and again["second"][:] == shown["second"][:]
    assert feedback.draw_pairs(world, patient, 600, seed=2)["first"][:] != shown["first"][:]
    first, same, other = (feedback.label(world, shown, Annotator(), seed=s)["position"][:] for s in (0, 0, 1))
    assert first == same != other


def test_several_annotators_answer_in_turn(world, shown):
    kind, cruel = (
        Annotator(temperature=1e-6, name="kind"),
        Annotator(temperature=1e-6, weights=dict.fromkeys(world.aspects, -1.0), name="cruel"),
    )
    labels = feedback.label(world, shown, [kind, cruel])
    assert labels["annotator"][:4] == ["kind", "cruel", "kind", "cruel"]
    halves = [feedback.gold_agreement(world, labels.select(range(k, 600, 2))) for k in (0, 1)]
    assert halves[0] > 0.95 and halves[1] < 0.05
    with pytest.raises(AlignkitError, match="at least one annotator"):
        feedback.label(world, shown, [])


def test_compare_draws_and_labels(world, patient):
    labels = feedback.compare(world, patient, Annotator(), n=50, seed=4, split="seen")
    shown = feedback.draw_pairs(world, patient, 50, seed=4, split="seen")
    assert labels.to_dict() == feedback.label(world, shown, Annotator(), seed=4).to_dict()
    assert set(labels["prompt"]) <= set(world.prompts("seen"))


def test_shuffled_labels_say_nothing(world, pairs):
    shuffled = feedback.shuffle_labels(pairs, seed=0)
    assert feedback.gold_agreement(world, pairs) > 0.95
    agreement = feedback.gold_agreement(world, shuffled)
    assert stats.binomtest(round(agreement * len(pairs)), len(pairs)).pvalue > 0.001
    assert {(*sorted((r["chosen"], r["rejected"])), r["prompt"]) for r in shuffled} == {
        (*sorted((r["chosen"], r["rejected"])), r["prompt"]) for r in pairs
    }
    assert shuffled.to_dict() == feedback.shuffle_labels(pairs, seed=0).to_dict()


@pytest.mark.parametrize("options, what", [({"n": 0}, "n"), ({"n": 3, "prompts": []}, "number of prompts")])
def test_no_pairs_to_draw_is_an_error(world, patient, options, what):
    with pytest.raises(AlignkitError, match=f"draw_groups: {what} must be at least 1, not 0"):
        feedback.draw_pairs(world, patient, **options)


# -- agreement -------------------------------------------------------------------------------------


def test_the_bayes_ceiling_is_the_mean_of_max_p():
    assert feedback.bayes_ceiling([0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


def test_labels_agree_with_gold_as_often_as_the_ceiling_allows(world, shown):
    ceilings, agreements = [], []
    for seed in range(5):
        labels = feedback.label(world, shown, Annotator(temperature=1.0), seed)
        ceilings.append(feedback.bayes_ceiling(labels["p_chosen"][:]))
        agreements.append(feedback.gold_agreement(world, labels))
    assert np.std(ceilings) < 1e-9 and 0.6 < ceilings[0] < 0.9
    assert np.mean(agreements) == pytest.approx(ceilings[0], abs=0.03)


def test_pair_accuracy_counts_ties_one_half():
    assert feedback.pair_accuracy([1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 3.0]) == pytest.approx(2.5 / 4)


def test_agreement_and_kappa_by_hand():
    def positions(text):
        return Dataset.from_dict({"position": [{"f": "first", "s": "second"}[c] for c in text]})

    a, b = positions("ffffssss"), positions("fffsssff")
    assert feedback.raw_agreement(a, b) == pytest.approx(5 / 8)
    assert feedback.kappa(a, b) == pytest.approx((5 / 8 - 0.5) / 0.5)
    assert feedback.kappa(a, a) == 1


def test_position_bias_shows_when_pairs_are_shown_both_ways(world, shown):
    def chose_first(person):
        both = [feedback.label(world, d, person) for d in (shown, feedback.swap(shown))]
        return np.mean([np.array(labels["position"][:]) == "first" for labels in both])

    assert chose_first(Annotator()) == pytest.approx(0.5, abs=0.05)
    assert chose_first(Annotator(position_bias=1.5)) > 0.6
