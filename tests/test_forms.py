"""Forms of feedback beside pairs: what each says and costs, who says it, and how many make one."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from alignkit import Annotator, feedback, rewards, worlds
from alignkit.errors import AlignkitError, DataError

SURE = Annotator(temperature=1e-6, name="sure")


@pytest.fixture(scope="module")
def groups(world, patient):
    return feedback.draw_groups(world, patient, 60, group_size=4, seed=1)


@pytest.fixture(scope="module")
def singles(groups):
    return feedback.one_by_one(groups)


@pytest.fixture(scope="module")
def shown(world, patient):
    return feedback.draw_pairs(world, patient, 200, seed=2)


def gold_of(world, data, column="completion"):
    return world.gold(data["prompt"][:], data[column][:])


def sums_up(data, items):
    """Cost columns are there, and their totals are what `cost` says."""
    spent = feedback.cost(data)
    assert spent["answers"] == len(data) and spent["items read"] == items * len(data)
    assert spent["bits"] == pytest.approx(np.sum(data["bits"][:]))
    return spent


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_groups_hold_different_answers_to_one_prompt(groups, singles):
    assert all(len(set(row["completions"])) == 4 for row in groups)
    assert len(singles) == 4 * len(groups) and feedback.one_by_one(singles) is singles
    assert singles["completion"][:4] == groups[0]["completions"]


def test_groups_that_cannot_differ_are_left_out_and_bad_sizes_refused(world):
    class Parrot:
        def sample(self, prompts, n=1, seed=0, **options):
            return [["same"] * n for _ in prompts]

    assert len(feedback.draw_groups(world, Parrot(), 5, group_size=2)) == 0
    with pytest.raises(AlignkitError, match="draw_groups: n must be at least 1"):
        feedback.draw_groups(world, Parrot(), 0)
    with pytest.raises(DataError, match="prompt and completion"):
        feedback.one_by_one(Dataset.from_dict({"prompt": ["a"]}))


# -- rankings ----------------------------------------------------------------------------------------------------------


def test_a_sure_person_ranks_by_gold_and_says_all_the_bits(world, groups):
    ranked = feedback.rank(world, groups, SURE)
    for row in ranked:
        gold = world.gold([row["prompt"]] * 4, row["ranked"])
        assert (np.diff(gold) <= 1e-9).all()
    untied = [len(set(world.gold([r["prompt"]] * 4, r["completions"]).round(6))) == 4 for r in groups]
    assert np.array(ranked["bits"][:])[untied] == pytest.approx(np.log2(24))
    assert sums_up(ranked, 4)["decisions"] == 3 * len(groups)


def test_rankings_are_as_frequent_as_plackett_luce_says(world):
    prompt = world.prompts("feedback")[0]
    texts = [world.ideal(prompt), "thank you for asking .", "of course . of course ."]
    many = Dataset.from_dict({"prompt": [prompt] * 4000, "completions": [texts] * 4000})
    person = Annotator(temperature=1.0, error=0.1)
    ranked = feedback.rank(world, many, person, seed=3)
    worth = np.exp(world.gold([prompt] * 3, texts))
    best = worth / worth.sum()
    first = np.array([row[0] for row in ranked["ranked"]])
    for text, p in zip(texts, best, strict=True):
        assert np.mean(first == text) == pytest.approx(0.8 * p + 0.2 / 3, abs=0.03)
    chance = 2 ** (np.array(ranked["bits"][:]) - np.log2(6))  # what each answer's probability was
    orders = {tuple(row): p for row, p in zip(ranked["ranked"], chance, strict=True)}
    assert sum(orders.values()) == pytest.approx(1) and len(orders) == 6


def test_best_of_k_asks_one_question_and_keeps_the_rest_as_shown(world, groups):
    best = feedback.rank(world, groups, SURE, top=1)
    for row, asked in zip(best, groups, strict=True):
        rest = [text for text in asked["completions"] if text != row["ranked"][0]]
        assert row["ranked"][1:] == rest
    assert sums_up(best, 4)["decisions"] == len(groups) and max(best["bits"][:]) <= 2 + 1e-9


def test_rankings_of_two_are_comparisons(world, shown):
    both = [[a, b] for a, b in zip(shown["first"], shown["second"], strict=True)]
    pairs = Dataset.from_dict({"prompt": shown["prompt"][:], "completions": both})
    person = Annotator(temperature=0.7, error=0.1, position_bias=0.5, length_bias=0.05)
    ranked = feedback.rank(world, pairs, person, seed=1)
    took_first = np.array([r["ranked"][0] == a for r, a in zip(ranked, shown["first"], strict=True)])
    p = person.prefers_first(world, shown["prompt"][:], shown["first"][:], shown["second"][:])
    np.testing.assert_allclose(2 ** (np.array(ranked["bits"][:]) - 1), np.where(took_first, p, 1 - p), atol=1e-9)


@pytest.mark.parametrize("completions, message", [([["a", "b"], ["a"]], "same number"), ([["a"]], "at least 2")])
def test_uneven_groups_are_refused(world, completions, message):
    data = Dataset.from_dict({"prompt": world.prompts("feedback")[: len(completions)], "completions": completions})
    with pytest.raises(DataError, match=message):
        feedback.rank(world, data, SURE)


def test_top_beyond_the_group_is_refused(world, groups):
    with pytest.raises(AlignkitError, match="top must be between 1 and 4, not 5"):
        feedback.rank(world, groups, SURE, top=5)


# -- ratings, thumbs, aspects ------------------------------------------------------------------------------------------


def test_sure_ratings_rise_with_gold_and_stay_on_the_scale(world, singles):
    rated = feedback.rate(world, singles, SURE)
    ratings, gold = np.array(rated["rating"][:]), gold_of(world, rated)
    assert set(ratings) <= {1, 2, 3, 4, 5} and len(set(ratings)) >= 4
    order = np.argsort(gold)
    assert (np.diff(ratings[order]) >= 0).all()
    sums_up(rated, 1)


def test_rating_probabilities_are_those_of_the_draws(world, singles):
    one = Dataset.from_dict({"prompt": singles["prompt"][:1] * 4000, "completion": singles["completion"][:1] * 4000})
    rated = feedback.rate(world, one, Annotator(temperature=0.8, error=0.05, shift=0.3, stretch=1.4))
    chance = dict(zip(rated["rating"], 2 ** (np.array(rated["bits"][:]) - np.log2(5)), strict=True))
    assert len(chance) == 5 and sum(chance.values()) == pytest.approx(1)
    for rating, p in chance.items():
        assert np.mean(np.array(rated["rating"][:]) == rating) == pytest.approx(p, abs=0.03)


def test_scale_use_shows_and_is_undone(world, singles):
    mild = Annotator(temperature=0.2, shift=1.0, stretch=0.5, name="mild")
    harsh = Annotator(temperature=0.2, shift=-1.0, name="harsh")
    rated = feedback.rate(world, singles, [mild, harsh], everyone=True)
    who, given = np.array(rated["annotator"][:]), np.array(rated["rating"][:], dtype=float)
    of = {name: given[who == name] for name in ("mild", "harsh")}
    assert of["mild"].mean() > of["harsh"].mean() + 1 and of["mild"].std() < of["harsh"].std()
    settled = feedback.standardize(rated)
    z = np.array(settled["rating"][:])
    for name in ("mild", "harsh"):
        assert z[who == name].mean() == pytest.approx(0, abs=1e-9) and z[who == name].std() == pytest.approx(1)
    assert settled["raw_rating"][:] == rated["rating"][:]

    def alpha(data):
        task = np.tile(np.arange(len(singles)), 2)
        return feedback.alpha(pd.DataFrame({"task": task, "worker": who, "label": data["rating"][:]}), interval=True)

    assert alpha(settled) > alpha(rated) + 0.1


def test_someone_who_always_gives_the_same_rating_says_nothing():
    data = Dataset.from_dict({"rating": [3, 3, 1, 5], "annotator": ["a", "a", "b", "b"]})
    assert feedback.standardize(data)["rating"][:] == [0.0, 0.0, -1.0, 1.0]


@pytest.mark.parametrize("bad", [0, 6, float("nan")])
def test_a_rating_off_the_scale_is_named(bad):
    data = Dataset.from_dict({"rating": [3.0, float(bad)], "annotator": ["a", "a"]})
    with pytest.raises(DataError, match="row 1: rating .* off the scale from 1 to 5"):
        feedback.standardize(data)
    with pytest.raises(DataError, match="column 'rating'"):
        feedback.standardize(Dataset.from_dict({"score": [1]}))


def test_thumbs_are_trls_labels_and_lenient_people_give_more(world, singles):
    plain, lenient = (feedback.thumbs(world, singles, Annotator(shift=s)) for s in (0.0, 1.5))
    assert plain.column_names[:3] == ["prompt", "completion", "label"] and isinstance(plain["label"][0], bool)
    assert np.mean(lenient["label"][:]) > np.mean(plain["label"][:]) + 0.15
    sure = feedback.thumbs(world, singles, SURE)
    gold = gold_of(world, sure)
    assert (np.array(sure["label"][:]) == (gold > gold.mean())).all()


def test_aspects_are_rated_one_by_one(world, singles):
    rated = feedback.rate_aspects(world, singles, SURE)
    assert rated.column_names[2:7] == list(world.aspects)
    truth = world.gold_aspects(rated["prompt"][:], rated["completion"][:])
    for name in world.aspects:
        assert np.corrcoef(truth[name], rated[name][:])[0, 1] > 0.6
    assert sums_up(rated, 1)["decisions"] == 5 * len(singles)


# -- critiques, corrections, demonstrations, steps, outcomes -----------------------------------------------------------


def test_a_sure_critic_names_a_true_fault_and_its_place(world, singles):
    said = feedback.critique(world, singles, SURE)
    for row in said:
        true = world.faults(row["prompt"], row["completion"])
        if row["place"]:
            assert true[row["place"] - 1] == row["fault"]
            assert row["critique"] == f"sentence {row['place']} is {row['fault']} ."
        else:
            assert row["fault"] == "" and row["critique"] == "nothing is wrong ."
    named = said.filter(lambda row: row["place"] > 0, load_from_cache_file=False)
    assert len(named) > len(said) / 2
    without = [feedback.without_sentence(world, r["completion"], r["place"]) for r in named]
    assert (world.gold(named["prompt"][:], without) > gold_of(world, named)).all()


def test_a_careless_critic_is_often_wrong_and_never_out_of_bounds(world, singles):
    said = feedback.critique(world, singles, Annotator(temperature=1e-6, error=0.5))
    wrong = [r["place"] and world.faults(r["prompt"], r["completion"])[r["place"] - 1] != r["fault"] for r in said]
    assert np.mean(wrong) > 0.6
    assert all(0 <= r["place"] <= len(world.segments(r["completion"])) for r in said)
    assert abs(np.mean(said["bits"][:])) < 1e-9  # says nothing


def test_an_empty_completion_is_rated_and_criticized_but_has_no_steps(world):
    data = Dataset.from_dict({"prompt": world.prompts("feedback")[:2], "completion": ["", "of course ."]})
    assert feedback.rate(world, data, SURE)["rating"][0] in (1, 2, 3, 4, 5)
    assert feedback.critique(world, data, SURE)["place"][0] == 0
    assert feedback.mark_steps(world, data, SURE)["completions"][:] == [["of course ."]]


def test_corrections_beat_what_they_correct(world, singles):
    mended = feedback.correct(world, singles, SURE)
    assert mended.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert (gold_of(world, mended, "chosen") > gold_of(world, mended, "rejected")).all()
    gain = gold_of(world, mended, "chosen") - gold_of(world, mended, "rejected")
    sloppy = feedback.correct(world, singles, Annotator(temperature=0.5, error=0.3))
    assert gain.mean() > (gold_of(world, sloppy, "chosen") - gold_of(world, sloppy, "rejected")).mean() + 0.1


def test_demonstrations_are_ideal_up_to_skill(world):
    prompts = world.prompts("feedback")[:40]
    perfect = feedback.demonstrate(world, prompts, Annotator())
    assert perfect["completion"][:] == [world.ideal(p) for p in prompts]
    sloppy = feedback.demonstrate(world, prompts, Annotator(error=0.2))
    assert gold_of(world, perfect).mean() > gold_of(world, sloppy).mean()
    assert feedback.cost(perfect)["items read"] == 0


@pytest.mark.parametrize("name", ["assistant", "arithmetic"])
def test_steps_are_marked_in_every_world_that_knows_its_faults(name):
    world = worlds.load(name)
    rows = world.corpus(40, seed=1)
    data = Dataset.from_dict({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]})
    marked = feedback.mark_steps(world, data, Annotator())
    assert all(len(a) == len(b) for a, b in zip(marked["labels"], marked["completions"], strict=True))
    assert marked["labels"][:] == [[not f for f in world.faults(p, c)] for p, c in rows]
    flipped = feedback.mark_steps(world, data, Annotator(error=0.25))
    share = np.mean(np.concatenate(marked["labels"][:]) != np.concatenate(flipped["labels"][:]))
    assert 0.1 < share < 0.4
    assert len(feedback.critique(world, data, Annotator())) == 40


def test_outcomes_come_from_any_verifier(singles):
    checked = feedback.verify(singles, lambda prompts, texts: [len(t) % 2 for t in texts])
    assert checked["label"][:] == [len(t) % 2 == 1 for t in singles["completion"]]
    assert feedback.cost(checked)["bits"] == len(singles)
    with pytest.raises(DataError, match="must return 0 or 1"):
        feedback.verify(singles, lambda prompts, texts: [0.5] * len(texts))


def test_a_prompt_outside_the_world_is_an_error(world):
    data = Dataset.from_dict({"prompt": ["who are you ?"], "completion": ["of course ."]})
    for form in (feedback.rate, feedback.thumbs, feedback.rate_aspects, feedback.critique, feedback.mark_steps):
        with pytest.raises(AlignkitError, match="not a prompt of world 'assistant'"):
            form(world, data, SURE)


def test_every_form_repeats_with_its_seed_and_changes_with_another(world, groups, singles):
    person = Annotator(temperature=0.7, error=0.1)
    of_singles = (feedback.rate, feedback.thumbs, feedback.rate_aspects, feedback.critique, feedback.mark_steps)
    for form, data in ((feedback.rank, groups), *((form, singles) for form in of_singles)):
        one, same, other = (form(world, data, person, seed=s).to_dict() for s in (0, 0, 1))
        assert one == same != other


# -- cost --------------------------------------------------------------------------------------------------------------


def test_bits_bound_what_an_answer_says():
    assert feedback.bits(1, 1.0) == 1 and feedback.bits(1, 0.5) == 0
    p = np.array([0.7, 0.2, 0.1])
    assert (p * feedback.bits(np.log2(3), p)).sum() == pytest.approx(np.log2(3) + (p * np.log2(p)).sum())


def test_pairs_have_a_cost_too_and_other_data_do_not(world, shown):
    spent = feedback.cost(feedback.label(world, shown, SURE))
    assert (spent["decisions"], spent["items read"]) == (200, 400) and spent["bits"] <= 200
    with pytest.raises(DataError, match="cost needs the columns"):
        feedback.cost(shown)


# -- people and models -------------------------------------------------------------------------------------------------


def test_people_differ_where_they_are_told_to(world):
    people = feedback.population(world, 8, seed=1, values=0.5, position=1.0, shift=0.5)
    assert len({p.temperature for p in people}) == 8 and len({p.weights["polite"] for p in people}) == 8
    alike = feedback.population(world, 3, seed=1)
    assert all(p.weights == world.weights and p.shift == 0 and p.stretch == 1 for p in alike)
    assert feedback.population(world, 3, seed=1) == alike
    with pytest.raises(AlignkitError, match="at least 1"):
        feedback.population(world, 0)


def test_a_person_can_be_made_as_good_as_asked(world, shown):
    person = feedback.with_agreement(world, shown, 0.75)
    found = [feedback.gold_agreement(world, feedback.label(world, shown, person, seed)) for seed in range(30)]
    assert np.mean(found) == pytest.approx(0.75, abs=0.02)
    with pytest.raises(AlignkitError, match="can't agree with gold"):
        feedback.with_agreement(world, shown, 0.9, Annotator(error=0.2))


def test_a_model_answers_in_every_form_as_its_scorer_says(world, groups, shown):
    short = Annotator(temperature=1e-6, scorer=lambda prompts, texts: [-len(t) for t in texts])
    labels = feedback.label(world, shown, short)
    assert all(len(row["chosen"]) <= len(row["rejected"]) for row in labels)
    assert all(list(map(len, row)) == sorted(map(len, row)) for row in feedback.rank(world, groups, short)["ranked"])
    with pytest.raises(AlignkitError, match="scorer must be callable"):
        Annotator(scorer="a reward")
    with pytest.raises(AlignkitError, match="one finite number for each"):
        feedback.label(world, shown, Annotator(scorer=lambda prompts, texts: [0.0]))


def test_a_principle_stands_before_the_prompt_and_several_add_up(pairs):
    assert feedback.under("be kind .", pairs)["prompt"][0] == f"be kind . {pairs['prompt'][0]}"

    def scorer(prompts, texts):
        return [float(p.startswith("a ")) + 2.0 * p.startswith("b ") for p in prompts]

    assert feedback.with_principle(scorer, "b")(["x"], ["y"]).tolist() == [2.0]
    assert feedback.with_principle(scorer, ["a", "b"])(["x"], ["y"]).tolist() == [3.0]


def test_a_rule_labels_only_where_it_speaks(world, shown):
    rude = rewards.RuleReward([rewards.Rule("rude", rewards.contains("fool|silly|waste my time"), -1.0)])
    said = feedback.label_by_rule(shown, rude)
    assert 0 < len(said) < len(shown)
    for row in said:
        pair = shown[row["task"]]
        assert {row["chosen"], row["rejected"]} == {pair["first"], pair["second"]}
        assert rude([row["prompt"]], [row["chosen"]]).scores[0] == 0


# -- quality -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(world, shown):
    people = [Annotator(temperature=0.2, error=e, name=f"e{e}") for e in (0.02, 0.05, 0.42, 0.45, 0.48)]
    return {p.name: feedback.label(world, shown, p, seed=k) for k, p in enumerate(people)}


def test_skill_is_found_without_the_truth_and_used(world, shown, crowd):
    merged = feedback.dawid_skene(crowd)
    assert feedback.gold_agreement(world, merged) > feedback.gold_agreement(world, feedback.majority(crowd))
    estimated = feedback.skills(crowd, merged)
    assert min(estimated["e0.02"], estimated["e0.05"]) > max(estimated["e0.42"], estimated["e0.45"], estimated["e0.48"])
    assert all(0.5 <= c <= 1 for c in merged["confidence"])
    assert [{r["chosen"], r["rejected"]} for r in merged] == [{r["first"], r["second"]} for r in shown]


def test_reliable_sources_outvote_unreliable_ones(world, crowd):
    truth = {"e0.02": 0.95, "e0.05": 0.92, "e0.42": 0.55, "e0.45": 0.53, "e0.48": 0.51}
    assert feedback.gold_agreement(world, feedback.combine(crowd, truth)) > feedback.gold_agreement(
        world, feedback.majority(crowd)
    )
    with pytest.raises(AlignkitError, match="reliability of 'e0.48' is None"):
        feedback.combine(crowd, {k: v for k, v in truth.items() if k != "e0.48"})


def test_labelings_of_other_pairs_are_refused(world, shown, crowd):
    with pytest.raises(DataError, match="task 0: the labelings are not of the same pairs"):
        feedback.majority({**crowd, "odd": feedback.label(world, shown.select(range(199, -1, -1)), SURE)})
    with pytest.raises(DataError, match="at least one labeling"):
        feedback.votes({})


def test_alpha_by_hand_and_where_it_is_undefined():
    rows = [("x", "a", 1), ("x", "b", 1), ("y", "a", 2), ("y", "b", 2), ("z", "a", 1), ("z", "b", 2)]
    table = pd.DataFrame(rows, columns=["task", "worker", "label"])
    assert feedback.alpha(table) == pytest.approx(0.4444, abs=1e-3)
    assert feedback.alpha(table[:4]) == pytest.approx(1)
    assert np.isnan(feedback.alpha(table[table.label == 1]))  # a single class
    assert np.isnan(feedback.alpha(table[table.worker == "a"]))  # nobody to agree with


def test_kappa_of_people_who_never_disagree_with_a_constant_is_undefined():
    same = Dataset.from_dict({"position": ["first"] * 5})
    assert np.isnan(feedback.kappa(same, same))
    other = Dataset.from_dict({"position": ["second"] * 5})
    assert feedback.kappa(same, other) == 0
    mixed = Dataset.from_dict({"position": ["first", "second"] * 2})
    turned = Dataset.from_dict({"position": ["second", "first"] * 2})
    assert feedback.kappa(mixed, mixed) == 1 and feedback.kappa(mixed, turned) == -1


def test_leanings_show(world, shown):
    leans = feedback.position_leaning(feedback.label(world, shown, Annotator(position_bias=2.0)))
    calm = feedback.position_leaning(feedback.label(world, shown, Annotator(temperature=0.5)))
    assert leans.low > 0.5 and calm.low < 0.52 and calm.high > 0.48
    long = feedback.length_leaning(feedback.label(world, shown, Annotator(length_bias=0.5)))
    assert long.value > feedback.length_leaning(feedback.label(world, shown, Annotator())).value
    assert feedback.length_leaning(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]})).value is None


# -- pooling -----------------------------------------------------------------------------------------------------------


def test_the_limit_of_bradley_terry_orders_by_borda_and_not_by_mean_utility():
    utilities, shares = np.array([[1.0, 0.0, -1.0], [-6.0, 0.0, 1.0]]), np.array([0.7, 0.3])
    p = feedback.win_matrix(utilities, 0.5, shares)
    score = feedback.bradley_terry_limit(p)
    assert np.argsort(score).tolist() == np.argsort(feedback.borda(p)).tolist() == [2, 1, 0]
    assert np.argmax(shares @ utilities) != 0
    alone = feedback.bradley_terry_limit(feedback.win_matrix(utilities[:1]))
    np.testing.assert_allclose(np.diff(alone), np.diff(utilities[0]), atol=1e-8)  # one kind of people: its utilities


def test_majorities_can_run_in_a_circle():
    p = feedback.win_matrix([[3, 2, 1], [1, 3, 2], [2, 1, 3]], temperature=0.1)
    assert feedback.cycles(p) == [[0, 1, 2]] and np.allclose(feedback.borda(p), 0.5)
    assert feedback.cycles(feedback.win_matrix([[3, 2, 1]])) == []
    with pytest.raises(AlignkitError, match=r"p\[i, j\] \+ p\[j, i\] = 1"):
        feedback.borda([[0.5, 0.9], [0.9, 0.5]])


# -- which question ----------------------------------------------------------------------------------------------------


def test_pairs_are_chosen_by_what_scorers_do_not_know(shown):
    def by_length(sign):
        return lambda prompts, texts: [sign * 0.1 * len(t) for t in texts]

    apart = [by_length(1), by_length(-1)]
    gap = np.array([abs(len(a) - len(b)) for a, b in zip(shown["first"], shown["second"], strict=True)])
    (unsure,) = feedback.choose_pairs(shown, 1, apart)
    assert abs(len(unsure["first"]) - len(unsure["second"])) == gap.max()
    close = feedback.choose_pairs(shown, 20, [by_length(1)], by="closeness")
    far = [abs(len(r["first"]) - len(r["second"])) for r in close]
    assert max(far) <= np.sort(gap)[19]
    assert len(feedback.choose_pairs(shown, 20)) == 20
    with pytest.raises(AlignkitError, match="disagreement needs at least two"):
        feedback.choose_pairs(shown, 20, [by_length(1)])
    with pytest.raises(AlignkitError, match="between 1 and the 200 pairs"):
        feedback.choose_pairs(shown, 201)


# --- columns that people bring along


def test_further_columns_go_along_with_every_form(world, singles):
    some = singles.select(range(12)).add_column("source", [f"s{i}" for i in range(12)])
    for form in (feedback.rate, feedback.thumbs, feedback.rate_aspects, feedback.critique, feedback.mark_steps):
        assert form(world, some, SURE)["source"][:] == some["source"][:]
    assert feedback.verify(some, lambda p, c: np.ones(len(c)))["source"][:] == some["source"][:]
    mended = feedback.correct(world, some, SURE)
    source = dict(zip(some["completion"], some["source"], strict=True))
    assert [source[text] for text in mended["rejected"]] == mended["source"][:] and len(mended)


def test_further_columns_of_pairs_and_groups_go_along(world, patient, shown):
    pairs = shown.add_column("source", [f"s{i}" for i in range(len(shown))])
    labels = feedback.label(world, pairs, SURE)
    assert labels["source"][:] == pairs["source"][:]
    assert feedback.shuffle_labels(labels)["source"][:] == pairs["source"][:]
    assert not {"position", "p_chosen"} & set(feedback.shuffle_labels(labels).column_names)
    assert feedback.swap(pairs)["source"][:] == pairs["source"][:]
    assert feedback.majority({"one": labels, "other": labels})["source"][:] == pairs["source"][:]
    ruled = feedback.label_by_rule(pairs, lambda p, c: [float(i % 2) for i in range(len(c))])
    assert ruled["source"][:] == [f"s{row}" for row in ruled["task"]]
    asked = Dataset.from_dict({"prompt": world.prompts("feedback")[:3], "answer": ["a", "b", "c"]})
    drawn = feedback.draw_groups(world, patient, 6, group_size=2, prompts=asked, max_new_tokens=8)
    known = dict(zip(asked["prompt"], asked["answer"], strict=True))
    assert [known[prompt] for prompt in drawn["prompt"]] == drawn["answer"][:]
    assert max(len(text.split()) for texts in drawn["completions"] for text in texts) <= 8
    assert feedback.rank(world, drawn, SURE)["answer"][:] == drawn["answer"][:]
    assert feedback.one_by_one(drawn)["answer"][:2] == [drawn["answer"][0]] * 2


def test_prompts_that_are_one_string_are_refused(world, patient):
    with pytest.raises(DataError, match="a list of prompts"):
        feedback.draw_pairs(world, patient, 2, prompts="how do i make tea ?")


def test_people_judge_by_the_columns_that_the_world_asks_for():
    class Quiz(worlds.World):
        name, version, aspects = "quiz", "quiz-v1", ("right",)

        def gold_aspects(self, prompts, completions, answer):
            return {"right": np.array([float(a == c) for a, c in zip(answer, completions, strict=True)])}

    pairs = Dataset.from_dict({"prompt": ["q", "q"], "first": ["1", "1"], "second": ["2", "2"], "answer": ["1", "2"]})
    assert feedback.label(Quiz(), pairs, SURE)["position"][:] == ["first", "second"]
    singles = Dataset.from_dict({"prompt": ["q", "q"], "completion": ["1", "1"], "answer": ["1", "2"]})
    right, wrong = feedback.rate_aspects(Quiz(), singles, SURE)["right"][:]
    assert right > wrong


# --- tables of votes


def test_a_long_table_of_votes_becomes_labelings(shown):
    table = pd.DataFrame({"pair": [0, 2, 0], "who": ["ann", "ann", "bob"], "winner": ["first", "second", "second"]})
    found = feedback.labelings(shown, table, task="pair", worker="who", winner="winner")
    assert list(found) == ["ann", "bob"] and found["ann"]["task"][:] == [0, 2]
    assert found["ann"]["chosen"][:] == [shown["first"][0], shown["second"][2]]
    assert feedback.majority(found)["task"][:] == [0, 2]
    for change, message in (({"pair": 999}, "row 1 of the votes: pair 999"), ({"winner": "tie"}, "winner 'tie'")):
        bad = table.assign(**{name: [table[name][0], value, table[name][2]] for name, value in change.items()})
        with pytest.raises(DataError, match=message):
            feedback.labelings(shown, bad, task="pair", worker="who", winner="winner")


@pytest.mark.parametrize("value", ["tie", "A", "First", "1", None])
def test_a_vote_for_neither_side_is_named(world, shown, value):
    labels = feedback.label(world, shown, SURE)
    sides = [labels["position"][0], value, *labels["position"][2:]]
    bad = labels.remove_columns("position").add_column("position", sides)
    with pytest.raises(DataError, match="labeling 'ann', row 1: position is"):
        feedback.votes({"ann": bad})
