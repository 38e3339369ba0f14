"""Rewards that speak in vectors, orders and words."""

import numpy as np
import pytest
import torch
from conftest import weights_of
from datasets import Dataset

from alignkit import evaluation, optimize, rewards
from alignkit.errors import AlignkitError, ContextError, DataError, RewardError
from alignkit.policy import load_policy
from alignkit.rewards.texts import sentences, without_sentences

QUICK = {"seed": 0, "progress": False}


@pytest.fixture(scope="module")
def answers(world, patient):
    """Single answers with exact aspects, a grade and a critique."""
    prompts = [world.prompts("feedback")[i] for i in range(0, 96)]
    rollout = patient.rollout(prompts, 2, seed=5)
    gold = world.gold(rollout.prompts, rollout.completions)
    grade = 1.0 + np.searchsorted(np.quantile(gold, [0.2, 0.4, 0.6, 0.8]), gold)
    faults = [world.faults(p, c) for p, c in zip(rollout.prompts, rollout.completions, strict=True)]
    return Dataset.from_dict({
        "prompt": rollout.prompts, "completion": rollout.completions, "rating": grade.tolist(),
        **{name: values.tolist() for name, values in world.gold_aspects(rollout.prompts, rollout.completions).items()},
        "critique": [rewards.write_faults(f) for f in faults],
    })  # fmt: skip


@pytest.fixture(scope="module")
def vector(answers, patient, world):
    return rewards.MultiAspect.fit(answers, patient, world.aspects, epochs=8, batch_size=16, **QUICK)


@pytest.fixture(scope="module")
def comparator(pairs, patient):
    return rewards.Comparator.fit(pairs, patient, epochs=4, **QUICK)


@pytest.fixture(scope="module")
def judge(answers, patient):
    return rewards.Judge.fit(answers, patient, epochs=12, learning_rate=2e-3, batch_size=16, **QUICK)


@pytest.fixture(scope="module")
def pair_judge(pairs, judge):
    return rewards.PairJudge.fit(pairs.select(range(96)), judge, epochs=2, batch_size=8, **QUICK)


@pytest.fixture(scope="module")
def some(world, patient):
    """Twelve answers to each of two prompts."""
    rollout = patient.rollout(world.prompts("seen")[:2], 12, seed=9)
    return rollout.prompts, rollout.completions


# -- vector


def test_vector_learns_each_aspect_in_its_own_units(vector, world, patient):
    rollout = patient.rollout(world.prompts("seen"), 4, seed=6)
    said, truth = vector(rollout.prompts, rollout.completions), world.gold_aspects(rollout.prompts, rollout.completions)
    assert np.corrcoef(said.aspects["polite"], truth["polite"])[0, 1] > 0.6
    for name in world.aspects:
        assert abs(said.aspects[name].mean() - truth[name].mean()) < truth[name].std()
    assert vector.card.format == "vector" and vector.card.objective == "multi"


def test_weights_change_the_score_and_nothing_else(vector, some):
    only = vector.with_weights({**dict.fromkeys(vector.aspects, 0.0), "polite": 2.0})
    said = only(*some)
    np.testing.assert_allclose(said.scores, 2 * said.aspects["polite"])
    np.testing.assert_allclose(sum(vector(*some).aspects.values()), vector(*some).scores)
    assert only.model is vector.model and vector.weights["polite"] == 1.0
    with pytest.raises(AlignkitError, match="an aspect must be one of .*polite.*not 'kind'"):
        vector.with_weights({"kind": 1.0})


@pytest.mark.parametrize("kind", ["vector", "comparator"])
def test_survives_saving(kind, request, some, tmp_path):
    reward = request.getfixturevalue(kind)
    again = type(reward).load(reward.save(tmp_path / kind))
    np.testing.assert_allclose(again(*some).scores, reward(*some).scores, atol=1e-5)


def test_a_saved_judge_is_its_policy(judge, pair_judge, some, tmp_path):
    judge.policy.save(tmp_path / "alone")
    pair_judge.policy.save(tmp_path / "pairs")
    alone = rewards.Judge(load_policy(tmp_path / "alone"), judge.names)
    again = rewards.PairJudge(load_policy(tmp_path / "pairs"), alone)
    assert alone(*some).critiques == judge(*some).critiques
    np.testing.assert_allclose(alone(*some).scores, judge(*some).scores, atol=1e-5)
    np.testing.assert_allclose(again(*some).scores, pair_judge(*some).scores, atol=1e-5)


def test_vector_says_what_is_wrong_with_ratings(answers, patient):
    with pytest.raises(DataError, match="missing.*'kind'"):
        rewards.MultiAspect.fit(answers, patient, ["kind"])
    with pytest.raises(DataError, match="at least one"):
        rewards.MultiAspect.fit(answers, patient, [])
    same = answers.add_column("same", [3.0] * len(answers))
    with pytest.raises(DataError, match="all 192 ratings of 'same' are 3"):
        rewards.MultiAspect.fit(same, patient, ["polite", "same"])


def test_gate_learns_what_counts_for_which_request(vector, world, patient):
    def better(kind, prompts, first, second):
        name = "polite" if kind == "harmful" else "concise"
        gap = world.gold_aspects(prompts, first)[name] - world.gold_aspects(prompts, second)[name]
        return gap[0]

    rollout = patient.rollout(world.prompts("feedback") * 2, 2, seed=8)
    rows = []
    for p, a, b in zip(rollout.prompts[::2], rollout.completions[::2], rollout.completions[1::2], strict=True):
        gap = better(world.topic(p).kind, [p], [a], [b])
        if gap:
            rows.append({"prompt": p, "chosen": a if gap > 0 else b, "rejected": b if gap > 0 else a})
    before = vector.model.score.weight.clone()
    gate = rewards.Gated.fit(Dataset.from_list(rows), vector)
    assert torch.equal(before, vector.model.score.weight)
    asked = world.prompts("feedback")
    harmful = np.array([world.topic(p).harmful for p in asked])
    weights = dict(zip(vector.aspects, gate.gate(asked).T, strict=True))
    np.testing.assert_allclose(sum(weights.values()), 1, atol=1e-6)
    assert weights["polite"][harmful].mean() > weights["polite"][~harmful].mean() + 0.1
    assert weights["concise"][harmful].mean() < weights["concise"][~harmful].mean() - 0.1


# -- ranking


class Table(rewards.PairReward):
    """Chances written down, for answers of one letter."""

    card = rewards.RandomReward().card
    chance = {"AB": 0.7, "BC": 0.7, "CA": 0.6}

    def first_better(self, prompts, first, second):
        met = zip(first, second, strict=True)
        p = np.array([self.chance.get(a + b, 1 - self.chance.get(b + a, 0)) for a, b in met])
        return np.log(p / (1 - p)) + self.leaning

    leaning = 0.0


def test_shares_of_wins_by_hand():
    said = Table()(["?"] * 3 + ["!"], ["A", "B", "C", "A"])
    np.testing.assert_allclose(said.scores, [0.55, 0.5, 0.45, 0.5])  # nobody to meet: one half
    assert said.ranks.tolist() == [1, 2, 3, 1]
    again = Table()(["?"] * 4, ["C", "A", "C", "B"])  # order and repetition do not matter
    np.testing.assert_allclose(again.scores, [0.45, 0.55, 0.45, 0.5])
    assert again.ranks.tolist() == [3, 1, 3, 2]


def test_both_orders_cancel_a_leaning():
    leaning = Table()
    leaning.leaning = 2.0
    assert not np.allclose(leaning(["?"] * 3, list("ABC")).scores, [0.55, 0.5, 0.45])
    leaning.both_orders = True
    np.testing.assert_allclose(leaning(["?"] * 3, list("ABC")).scores, [0.55, 0.5, 0.45])


def test_everyone_meets_the_same_few(comparator, some):
    asked, read = [], comparator.first_better
    comparator.first_better = lambda p, a, b: asked.append(len(p)) or read(p, a, b)
    try:
        comparator(*some)
    finally:
        del comparator.first_better
    assert 0 < sum(asked) <= 24 * comparator.opponents


def test_comparator_reads_both_sides(comparator, world, patient):
    prompts = world.prompts("seen")
    good = [world.ideal(p) for p in prompts]
    bad = ["do not waste my time . what a great question ."] * len(prompts)
    assert (comparator.first_better(prompts, good, bad) > 0).mean() > 0.9
    assert (comparator.first_better(prompts, bad, good) < 0).mean() > 0.9
    swapped = rewards.Comparator.fit(Dataset.from_dict({"prompt": prompts, "chosen": bad, "rejected": good}), patient,
                                     epochs=4, **QUICK)  # fmt: skip
    assert (swapped.first_better(prompts, good, bad) < 0).mean() > 0.9  # it learned what it was told
    assert comparator.card.format == "ranking"


def test_comparator_says_what_is_wrong(pairs, patient):
    with pytest.raises(AlignkitError, match="'position'"):
        rewards.Comparator.fit(pairs.remove_columns("position"), patient, keep_order=True)


def test_loading_needs_the_right_kind(vector, tmp_path):
    folder = vector.save(tmp_path)
    with pytest.raises(AlignkitError, match="is no Comparator"):
        rewards.Comparator.load(folder)


# -- words


def test_faults_as_text_and_back():
    text = rewards.write_faults(["", "rude", "", "over-cautious"])
    assert text == "sentence 2 is rude . sentence 4 is over-cautious ."
    assert rewards.read_faults(text) == [(2, "rude"), (4, "over-cautious")]
    assert rewards.read_faults(f"{text} grade 2 of 5 .") == [(2, "rude"), (4, "over-cautious")]
    assert rewards.read_faults(rewards.write_faults(["", ""])) == []
    assert rewards.read_faults("well , it depends .") is None


def test_sentences_are_the_worlds(world, patient):
    for text in [*patient.rollout(world.prompts("seen")[:20], 2, seed=3).completions, "", "cut off in the"]:
        assert sentences(text) == world.segments(text)
    text = "of course . boil water . do not"
    assert without_sentences(text, [1, 3]) == "boil water ."


def test_reader_knows_new_words_and_leaves_the_patient_alone(patient):
    before, size = weights_of(patient), len(patient.tokenizer)
    other = rewards.reader(patient, ["rude", "salt", "grade"], context=200)
    assert len(patient.tokenizer) == size and torch.equal(weights_of(patient), before) and patient.context == 96
    assert other.context == 200 and len(other.tokenizer) == size + 2  # salt was known
    ids = other.completion_ids("salt rude grade salt .", ended=False)
    assert len(ids) == 5 and other.tokenizer.unk_token_id not in ids
    assert other.tokenizer.decode(ids) == "salt rude grade salt ."
    prompts, texts = ["how do i make tea ?"], ["pour the tea slowly ."]
    ours, theirs = other.logprobs(prompts, texts)[0], patient.logprobs(prompts, texts)[0]
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0)
    assert torch.equal(weights_of(other), weights_of(rewards.reader(patient, ["rude", "salt", "grade"], context=200)))


def test_judge_names_faults_and_grades(judge, world):
    prompts = [p for p in world.prompts("seen") if not world.topic(p).harmful][:20]
    good, bad = [world.ideal(p) for p in prompts], ["do not waste my time . what a great question ."] * len(prompts)
    better, worse = judge(prompts, good), judge(prompts, bad)
    assert better.scores.mean() > worse.scores.mean() + 1
    assert np.mean([(1, "rude") in (rewards.read_faults(text) or []) for text in worse.critiques]) > 0.8
    assert all(text.endswith(" of 5 .") for text in worse.critiques)
    assert judge.card.format == "textual" and ((1 <= worse.scores) & (worse.scores <= 5)).all()


def test_judge_without_critiques_writes_only_the_grade(answers, patient, some):
    graded = answers.remove_columns("critique")
    plain = rewards.Judge.fit(graded, patient, epochs=4, learning_rate=3e-3, batch_size=16, **QUICK)
    said = plain(*some)
    assert all(text.startswith("grade ") for text in said.critiques)


def test_what_does_not_parse_is_counted(answers, patient, some):
    raw = rewards.Judge.fit(answers.select(range(2)), patient, epochs=1, learning_rate=1e-9, **QUICK)
    with pytest.raises(RewardError, match="100% of 24 verdicts do not parse.*max_unparsed"):
        raw(*some)
    raw.max_unparsed = 1.0
    said = raw(*some)
    assert not any(map(rewards.parses, said.critiques)) and (said.scores == 3).all()


def test_judge_says_what_is_wrong_with_verdicts(answers, patient):
    def changed(column, value):
        rows = answers.select(range(3)).to_list()
        rows[1][column] = value
        return Dataset.from_list(rows)

    with pytest.raises(DataError, match="row 1: can't read the critique 'so so'"):
        rewards.Judge.fit(changed("critique", "so so"), patient)
    with pytest.raises(DataError, match="row 1: can't read the critique 'sentence 40"):
        rewards.Judge.fit(changed("critique", "sentence 40 is rude ."), patient)
    with pytest.raises(DataError, match="row 1: 'rating' is 2.5"):
        rewards.Judge.fit(changed("rating", 2.5), patient)
    with pytest.raises(DataError, match="row 1: 'rating' is 7.*off the scale"):
        rewards.Judge.fit(changed("rating", 7.0), patient)
    with pytest.raises(ContextError, match="row 1.*context"):
        rewards.Judge.fit(changed("completion", "boil water . " * 60).remove_columns("critique"), patient)


def test_pair_judge_gives_an_order(pair_judge, some):
    said = pair_judge(*some)
    assert ((0 <= said.scores) & (said.scores <= 1)).all() and pair_judge.card.format == "textual"
    pair_judge.both_orders = True
    try:
        p, a, b = some[0][:4], some[1][:4], some[1][4:8]
        np.testing.assert_allclose(pair_judge.compare(p, a, b), -pair_judge.compare(p, b, a), atol=1e-6)
    finally:
        pair_judge.both_orders = False


@pytest.mark.parametrize("kind", ["vector", "judge", "comparator", "pair_judge"])
def test_neighbors_do_not_matter(kind, request, some):
    """One prompt's answers get the same scores alone, beside others, and in any order."""
    reward = request.getfixturevalue(kind)
    prompts, texts = some
    whole, alone = reward(prompts, texts).scores, reward(prompts[:12], texts[:12]).scores
    np.testing.assert_allclose(alone, whole[:12], atol=1e-5)
    order = np.random.default_rng(0).permutation(24)
    turned = reward([prompts[i] for i in order], [texts[i] for i in order]).scores
    np.testing.assert_allclose(turned, whole[order], atol=1e-5)
    assert len(reward([], []).scores) == 0


# -- revision


def test_revision_mends_what_is_named(world, patient):
    class Honest(rewards.Reward):
        card = rewards.GoldReward(world).card

        def judge(self, prompts, completions):
            critiques = [rewards.write_faults(world.faults(p, c)) for p, c in zip(prompts, completions, strict=True)]
            return rewards.Judgement(world.gold(prompts, completions), critiques=critiques)

    asked = world.prompts("treatment")[::3]
    versions = {mend: optimize.revise(patient, asked, Honest(), 4, mend=mend, seed=1) for mend in ("resample", "drop")}
    plain = patient.sample(asked, 4, seed=2)

    def best(rows):
        return np.mean([max(world.gold([p] * 4, row)) for p, row in zip(asked, rows, strict=True)])

    assert all(len(row) == 4 for rows in versions.values() for row in rows)
    assert best(versions["drop"]) > best(plain) and best(versions["resample"]) > best(plain)


def test_revision_says_what_is_wrong(patient, world):
    with pytest.raises(AlignkitError, match="writes critiques"):
        optimize.revise(patient, world.prompts()[:2], rewards.RandomReward(), 2)
    with pytest.raises(AlignkitError, match="mend"):
        optimize.revise(patient, world.prompts()[:2], rewards.RandomReward(), 2, mend="pray")


def test_all_formats_stand_side_by_side(world, patient, vector, comparator, judge):
    told = {"vector": vector, "ranking": comparator, "textual": judge}
    table = evaluation.side_by_side(world, patient, told, steps=1, n_reference=24, prompts=2, prompts_per_step=2,
                                    group_size=4, n=6, progress=False)  # fmt: skip
    assert list(table.index) == ["untreated", *told]
    assert np.isfinite(table["gold gained (sd)"].astype(float)).all()
