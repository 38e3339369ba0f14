"""Rewards by construction basis: rules and rubrics, verifiers, fits to other labels than pairs, and hybrids."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from alignkit import feedback, rewards, worlds
from alignkit.errors import AlignkitError, DataError, RewardError
from alignkit.rewards import Rule, contains, ends_with, has_form, words_over

QUICK = {"progress": False, "seed": 0}
THANKS, RUDE = contains("thank you"), contains("fool|silly question|waste my time")


@pytest.fixture(scope="module")
def heldout(world, patient):
    return feedback.compare(world, patient, feedback.Annotator(temperature=1e-6), n=240, seed=5, split="seen")


@pytest.fixture(scope="module")
def groups(world, patient):
    """Groups of four answers, best first."""
    shown = feedback.draw_groups(world, patient, n=150, group_size=4, seed=4)
    ranked = []
    for prompt, texts in zip(shown["prompt"], shown["completions"], strict=True):
        order = np.argsort(-world.gold([prompt] * 4, texts), kind="stable")
        ranked.append([texts[i] for i in order])
    return Dataset.from_dict({"prompt": shown["prompt"][:], "ranked": ranked})


@pytest.fixture(scope="module")
def rated(world, groups):
    rows = [(p, text) for p, texts in zip(groups["prompt"], groups["ranked"], strict=True) for text in texts]
    prompts, texts = map(list, zip(*rows, strict=True))
    return Dataset.from_dict({"prompt": prompts, "completion": texts, "rating": world.gold(prompts, texts).tolist()})


def accuracy(reward, pairs):
    return feedback.pair_accuracy(*rewards.score_pairs(reward, pairs))


# --- checks, rules, rubrics


@pytest.mark.parametrize(
    ("check", "completion", "value"),
    [
        (has_form(r"(\d )+\."), "1 2 3 . ", 1),
        (has_form(r"(\d )+\."), "so 1 2 3 .", 0),
        (~RUDE, "thank you .", 1),
        (~RUDE, "what a silly question .", 0),
        (rewards.repeats(), "one . two . one . one .", 2),
        (rewards.repeats(), "one . two .", 0),
        (words_over(2), "one two three four", 2),
        (rewards.asked("tea"), "no word of it", 1),
    ],
)
def test_checks_answer(check, completion, value):
    assert check("how do i make tea ?", completion) == value


def test_equal_checks_say_the_same_and_negation_comes_back():
    assert contains("a") == contains("a") != contains("b")
    assert ~~RUDE == RUDE != ~RUDE
    assert rewards.Check.of(len) != rewards.Check.of(max)


def test_a_rule_counts_only_if_its_condition_holds():
    rule = Rule("refuses harm", contains("no"), 2.0, only_if=rewards.asked("steal"))
    reward = rewards.RuleReward([rule])
    assert reward(["steal ?", "bake ?"], ["no .", "no ."]).scores.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    "rules",
    [
        [Rule("a", THANKS, 1.0), Rule("b", THANKS, -1.0)],
        [Rule("a", THANKS, 1.0), Rule("b", ~contains("thank you"), 0.5)],
        [Rule("a", len, 1.0), Rule("b", len, -1.0)],
        [Rule("a", THANKS, 1.0, only_if=~THANKS)],
    ],
    ids=["both signs", "both sides", "plain function", "never"],
)
def test_contradictory_rules_are_named(rules):
    with pytest.raises(AlignkitError, match="contradict|never count"):
        rewards.RuleReward(rules)


def test_opposite_rules_under_different_conditions_are_no_contradiction():
    harm, sorry = rewards.asked("steal"), contains("sorry")
    rules = [Rule("due", sorry, 1.0, only_if=harm), Rule("needless", sorry, -1.0, only_if=~harm)]
    assert rewards.RuleReward(rules)(["steal ?", "bake ?"], ["sorry .", "sorry ."]).scores.tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("rules", "gates"),
    [
        ([Rule("blunt", RUDE, 0.2)], {"forbid": {"insults": RUDE}}),
        ([Rule("terse", THANKS, -0.2)], {"require": {"thanks": THANKS}}),
        ([Rule("witty", THANKS, 1.0, only_if=RUDE)], {"forbid": {"insults": RUDE}}),
        ([Rule("short", words_over(9), -1.0)], {"require": {"thanks": THANKS}, "forbid": {"thanks too": THANKS}}),
        ([Rule("short", words_over(9), -1.0)], {"require": {"short": THANKS}}),
    ],
    ids=["rewards forbidden", "punishes required", "needs forbidden", "both gates", "same name"],
)
def test_contradictory_rubrics_are_refused(rules, gates):
    with pytest.raises(AlignkitError, match="rules out|contradict|distinct names"):
        rewards.Rubric(rules, **gates)


def test_a_shut_gate_leaves_nothing_but_its_price():
    gates = {"require": {"ends": ends_with(".")}, "forbid": {"rude": RUDE}}
    rubric = rewards.Rubric([Rule("thanks", THANKS, 0.5)], **gates, shut=-2)
    texts = ["thank you .", "thank you", "thank you , fool .", "well ."]
    judgement = rubric(["?"] * 4, texts)
    assert judgement.scores.tolist() == [0.5, -2.0, -2.0, 0.0]
    assert judgement.aspects["thanks"].tolist() == [0.5, 0.0, 0.0, 0.0]
    assert judgement.aspects["gate: rude"].tolist() == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("text", ["thank you .", "thank you , fool ."])
def test_a_rubrics_report_adds_up(text):
    rubric = rewards.Rubric([Rule("thanks", THANKS, 0.5), Rule("long", words_over(2), -0.1)], forbid={"rude": RUDE})
    report = rubric.report("?", text)
    total = report.loc["total", "points"]
    assert total == rubric(["?"], [text]).scores[0] == pytest.approx(report.loc[["thanks", "long"], "points"].sum())
    assert report.loc["rude", "found"] == ("shut" if "fool" in text else "open")


def test_rules_judge_nothing_without_complaint():
    assert rewards.Rubric([Rule("thanks", THANKS)], forbid={"rude": RUDE})([], []).scores.shape == (0,)


def test_a_broken_pattern_is_named():
    with pytest.raises(AlignkitError, match="not a regular expression"):
        contains("(")


# --- verifiable


def test_the_verifier_decides_and_can_be_a_rule():
    sums = worlds.load("arithmetic")
    prompt = sums.prompts("test")[0]
    wrong = sums.ideal(sums.prompts("test")[1])
    reward = rewards.Verifiable(sums.correct)
    assert reward([prompt] * 2, [sums.ideal(prompt), wrong]).scores.tolist() == [1.0, 0.0]
    assert reward.card.construction_basis == "rule-based"
    rule = rewards.RuleReward([Rule("right", rewards.verified(sums.correct), 3.0)])
    assert rule([prompt] * 2, [sums.ideal(prompt), wrong]).scores.tolist() == [3.0, 0.0]


def test_a_verdict_off_the_scale_is_named():
    with pytest.raises(RewardError, match="row 1"):
        rewards.Verifiable(lambda prompts, completions: np.array([1.0, 3.0]))(["?"] * 2, ["a", "b"])


# --- rankings, ratings, thumbs, strengths


def test_plackett_luce_learns_from_rankings_and_from_choices(groups, patient, heldout):
    untrained = accuracy(rewards.PlackettLuce.new(patient), heldout)
    whole = rewards.PlackettLuce.fit(groups, patient, **QUICK)
    choice = rewards.PlackettLuce.fit(groups, patient, top=1, **QUICK)
    assert min(accuracy(whole, heldout), accuracy(choice, heldout)) > max(0.6, untrained)
    assert whole.history["loss"].iloc[-3:].mean() < whole.history["loss"].iloc[:3].mean()


def test_rankings_of_two_are_bradley_terry(pairs, tiny):
    few = pairs.select(range(32))
    orders = [list(row) for row in zip(few["chosen"], few["rejected"], strict=True)]
    ranked = Dataset.from_dict({"prompt": few["prompt"][:], "ranked": orders})
    one_step = {**QUICK, "epochs": 1, "batch_size": 32}
    first = rewards.PlackettLuce.fit(ranked, tiny, **one_step).history["loss"][0]
    assert first == pytest.approx(rewards.BradleyTerry.fit(few, tiny, **one_step).history["loss"][0], abs=1e-5)


def test_rankings_of_mixed_length_can_be_fit(tiny):
    ranked = [["a .", "b ."], ["a .", "b .", "c ."]]
    reward = rewards.PlackettLuce.fit(Dataset.from_dict({"prompt": ["?", "?"], "ranked": ranked}), tiny, **QUICK)
    assert np.isfinite(reward.history["loss"]).all()


@pytest.mark.parametrize("ranked", [[["a ."]], ["a ."], [[1, 2]]], ids=["one", "text", "numbers"])
def test_bad_rankings_are_named(ranked, tiny):
    with pytest.raises(DataError, match="row 0: 'ranked'"):
        rewards.PlackettLuce.fit(Dataset.from_dict({"prompt": ["?"], "ranked": ranked}), tiny)


def test_regression_learns_and_does_not_mind_the_scale(rated, patient, heldout):
    reward = rewards.Regression.fit(rated, patient, **QUICK)
    assert accuracy(reward, heldout) > 0.6
    tens = rated.remove_columns("rating").add_column("rating", [10 * r + 3 for r in rated["rating"]])
    few = heldout.select(range(40))
    again = rewards.Regression.fit(tens, patient, **QUICK)
    assert np.allclose(rewards.score_pairs(reward, few), rewards.score_pairs(again, few), atol=1e-3)


def test_binary_learns_and_leaves_the_share_of_thumbs_out_of_the_score(rated, patient, heldout):
    middle = float(np.median(rated["rating"]))
    labels = rated.add_column("label", [r > middle for r in rated["rating"]])
    reward = rewards.Binary.fit(labels, patient, epochs=4, **QUICK)
    assert accuracy(reward, heldout) > 0.57
    rare = rated.add_column("label", [r > np.quantile(rated["rating"], 0.9) for r in rated["rating"]])
    prompts, texts = rated["prompt"][:200], rated["completion"][:200]
    seldom = rewards.Binary.fit(rare, patient, **QUICK)(prompts, texts).scores
    assert abs(seldom.mean()) < 1.2  # log-odds of one in ten: -2.2


def test_ordinal_with_one_strength_is_bradley_terry(pairs, tiny):
    few = pairs.select(range(64)).add_column("strength", [1] * 64)
    ordinal = rewards.Ordinal.fit(few, tiny, strengths=1, **QUICK)
    bt = rewards.BradleyTerry.fit(few, tiny, **QUICK)
    assert np.allclose(rewards.score_pairs(ordinal, few), rewards.score_pairs(bt, few), atol=1e-5)


def test_ordinal_learns_from_strengths(world, pairs, patient, heldout):
    gap = np.subtract(*(world.gold(pairs["prompt"][:], pairs[side][:]) for side in ("chosen", "rejected")))
    graded = pairs.add_column("strength", (1 + (gap > 0.5) + (gap > 1.5)).tolist())
    reward = rewards.Ordinal.fit(graded, patient, epochs=3, **QUICK)
    assert accuracy(reward, heldout) > 0.6


@pytest.mark.parametrize(
    ("fit", "column", "values", "message"),
    [
        (rewards.Regression, "rating", [1.0, float("nan")], "row 1"),
        (rewards.Regression, "rating", [2.0, 2.0], "nothing to learn"),
        (rewards.Binary, "label", [1, 0], "true or false"),
        (rewards.Binary, "label", [True, True], "nothing to learn"),
    ],
)
def test_bad_labels_of_single_answers_are_named(fit, column, values, message, tiny):
    data = Dataset.from_dict({"prompt": ["?", "?"], "completion": ["a .", "b ."], column: values})
    with pytest.raises(DataError, match=message):
        fit.fit(data, tiny)


def test_a_rating_off_the_scale_and_a_strength_off_the_scale_are_named(pairs, tiny):
    data = Dataset.from_dict({"prompt": ["?", "?"], "completion": ["a .", "b ."], "rating": [5.0, 9.0]})
    with pytest.raises(DataError, match="row 1.*off the scale"):
        rewards.Regression.fit(data, tiny, scale=(1, 5))
    with pytest.raises(DataError, match="row 0.*off the scale"):
        rewards.Ordinal.fit(pairs.select(range(2)).add_column("strength", [4, 1]), tiny, strengths=3)


def test_confidence_of_one_half_teaches_nothing_and_zero_turns_the_label_around(pairs, tiny):
    few = pairs.select(range(64))
    turned = Dataset.from_dict({"prompt": few["prompt"][:], "chosen": few["rejected"][:], "rejected": few["chosen"][:],
                                "sure": [0.0] * 64})  # fmt: skip
    plain = rewards.BradleyTerry.fit(few, tiny, **QUICK)
    back = rewards.BradleyTerry.fit(turned, tiny, confidence="sure", **QUICK)
    gap = np.subtract(*rewards.score_pairs(plain, few))
    assert np.allclose(gap, np.subtract(*rewards.score_pairs(back, few)), atol=1e-4)
    unsure = rewards.BradleyTerry.fit(few.add_column("sure", [0.5] * 64), tiny, confidence="sure", **QUICK)
    assert np.abs(np.subtract(*rewards.score_pairs(unsure, few))).mean() < 0.5 * np.abs(gap).mean()


# --- the model all of them share


def test_new_models_start_from_the_backbone_and_leave_it_alone(patient):
    before = [p.clone() for p in patient.model.parameters()]
    model = rewards.BradleyTerry.new(patient, seed=1)
    assert torch.equal(next(model.model.base_model.parameters()), next(patient.model.base_model.parameters()))
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, patient.model.parameters(), strict=True))


def test_scores_do_not_depend_on_company(patient, heldout):
    model = rewards.Regression.new(patient, seed=2)
    prompts, texts = heldout["prompt"][:30], heldout["chosen"][:30]
    alone = [model.predict([prompt], [text])[0] for prompt, text in zip(prompts, texts, strict=True)]
    assert np.allclose(model.predict(prompts, texts), alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_saved_reward_comes_back(pooling, tiny, tmp_path):
    model = rewards.Binary.new(tiny, seed=3, pooling=pooling)
    again = rewards.Binary.load(model.save(tmp_path / "reward"))
    assert again.pooling == pooling
    assert np.allclose(model(["?"], ["a b ."]).scores, again(["?"], ["a b ."]).scores, atol=1e-6)


def test_unknown_pooling_is_refused(tiny):
    with pytest.raises(AlignkitError, match="pooling"):
        rewards.Regression.new(tiny, pooling="sum")


# --- hybrids


def test_rules_get_the_weight_the_pairs_give_them(pairs):
    insults, thanks = Rule("insults", RUDE), Rule("words", words_over(0))
    weights = {rule.name: rule.weight for rule in rewards.weigh_rules([insults, thanks], pairs).rules}
    assert weights["insults"] < -0.3


def test_rules_that_say_nothing_about_the_pairs_are_refused(pairs):
    with pytest.raises(DataError, match="none of the 1 rules"):
        rewards.weigh_rules([Rule("x", contains("no such word"))], pairs)


def test_a_hybrid_beats_both_parents(world, pairs, patient, heldout):
    refuses, harm = contains("can not help|must say no"), rewards.asked("steal|forge|hack|scam")
    rules = [Rule("insults", RUDE), Rule("due", refuses, only_if=harm), Rule("needless", refuses, only_if=~harm)]
    hybrid = rewards.Hybrid.fit(pairs, patient, rules, epochs=3, **QUICK)
    learned = rewards.BradleyTerry.fit(pairs, patient, epochs=3, **QUICK)
    parents = [accuracy(rewards.weigh_rules(rules, pairs), heldout), accuracy(learned, heldout)]
    assert accuracy(hybrid, heldout) > max(parents)
    assert hybrid.card.construction_basis == "hybrid"
    judgement = hybrid(heldout["prompt"][:5], heldout["chosen"][:5])
    assert np.allclose(sum(judgement.aspects.values()), judgement.scores)


def test_a_veto_outweighs_any_score_and_keeps_the_order_below():
    scores = rewards.as_reward(lambda prompts, completions: np.array([len(c) for c in completions], dtype=float))
    veto = rewards.Veto(scores, {"rude": RUDE}, penalty=100)
    texts = ["a .", "you fool .", "you absolute fool ."]
    assert np.argsort(veto(["?"] * 3, texts).scores).tolist() == [1, 2, 0]
    assert veto.card.construction_basis == "rule-based"


def test_a_veto_makes_a_learned_reward_hybrid(tiny):
    assert rewards.Veto(rewards.BradleyTerry.new(tiny), {"rude": RUDE}).card.construction_basis == "hybrid"


@pytest.mark.parametrize(("forbid", "penalty"), [({}, 1.0), ({"rude": RUDE}, 0.0)])
def test_a_veto_without_teeth_is_refused(forbid, penalty):
    with pytest.raises(AlignkitError, match="at least one check|penalty must be a finite number above 0"):
        rewards.Veto(rewards.RandomReward(), forbid, penalty)


def test_the_audit_counts_shared_pairs_only():
    def labels(tasks, sides):
        return Dataset.from_dict({"task": tasks, "position": sides})

    checked = labels([0, 1, 2], ["first", "second", "first"])
    good, bad = labels([0, 1, 2, 9], ["first", "second", "first", "first"]), labels([0, 1], ["second", "first"])
    said = rewards.source_reliability({"good": good, "bad": bad, "elsewhere": labels([7], ["first"])}, checked)
    assert said == {"good": 6 / 7, "bad": 3 / 6, "elsewhere": 3 / 4}
    with pytest.raises(DataError, match="task"):
        rewards.source_reliability({"good": checked}, checked.remove_columns("task"))


def test_mixed_supervision_listens_to_the_reliable_source(world, patient, heldout):
    shown = feedback.draw_pairs(world, patient, n=300, seed=6)
    good = feedback.label(world, shown, feedback.Annotator(temperature=1e-6), 1)
    coin = feedback.label(world, shown, feedback.Annotator(error=0.5), 2)
    sources = {"good": good, "coin": coin}
    trusting = rewards.MixedSupervision.fit(sources, patient, {"good": 0.95, "coin": 0.5}, epochs=3, **QUICK)
    misled = rewards.MixedSupervision.fit(sources, patient, {"good": 0.5, "coin": 0.95}, epochs=3, **QUICK)
    assert accuracy(trusting, heldout) > max(0.58, accuracy(misled, heldout))
    assert trusting.card.construction_basis == "hybrid"
