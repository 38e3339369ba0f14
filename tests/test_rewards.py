"""Losses have the gradients and symmetries of their equations; rewards score as they should."""

import asyncio
import functools
import itertools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import finite_differences, weights_of
from datasets import Dataset
from scipy import stats
from torch.autograd import gradcheck
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit import feedback, rewards
from alignkit.errors import AlignkitError
from alignkit.rewards import bradley_terry_loss, ordinal_loss, plackett_luce_loss
from alignkit.rewards.base import columns_of, repeated
from alignkit.taxonomy import CARD_FIELDS, RewardCard


def doubles(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


CUTS = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
GRADES = torch.tensor([0, 1, 2, 3, 3, 0])

# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (bradley_terry_loss, (doubles(6), doubles(6, seed=1))),
        (bradley_terry_loss, (doubles(6, scale=30), doubles(6, seed=1), doubles(6, seed=2))),
        (plackett_luce_loss, (doubles(4, 5),)),
        (
            lambda gap, cuts: ordinal_loss(gap, GRADES, cuts),
            (doubles(6, scale=3), CUTS.clone().requires_grad_()),
        ),
    ],
    ids=["bradley-terry", "with margin", "plackett-luce", "ordinal"],
)
def test_gradients_are_those_of_the_loss(loss, inputs):
    assert gradcheck(loss, inputs)
    for k, x in enumerate(inputs):
        (slope,) = torch.autograd.grad(loss(*inputs).sum(), x)
        numeric = finite_differences(lambda y, k=k: loss(*inputs[:k], y, *inputs[k + 1 :]).detach(), x.detach())
        torch.testing.assert_close(slope, numeric, atol=1e-7, rtol=1e-6)


def test_bradley_terry_is_minus_log_sigmoid_of_the_gap():
    chosen, rejected = doubles(6).detach(), doubles(6, seed=1).detach()
    by_hand = [math.log(1 + math.exp(-(c - r - 0.5))) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, 0.5), torch.tensor(by_hand).double())
    # the two labels of a pair are one certain event
    both = torch.exp(-bradley_terry_loss(chosen, rejected)) + torch.exp(-bradley_terry_loss(rejected, chosen))
    torch.testing.assert_close(both, torch.ones(6, dtype=torch.float64))


def test_a_shift_per_prompt_changes_no_loss():
    a, b, shift = doubles(6).detach(), doubles(6, seed=1).detach(), doubles(6, seed=2).detach()
    torch.testing.assert_close(bradley_terry_loss(a + shift, b + shift), bradley_terry_loss(a, b))
    ranked = doubles(6, 4).detach()
    torch.testing.assert_close(plackett_luce_loss(ranked + shift[:, None]), plackett_luce_loss(ranked))


def test_a_larger_margin_costs_more_and_pulls_harder():
    gap = doubles(6)
    losses = [bradley_terry_loss(gap, torch.zeros_like(gap), m) for m in (0.0, 0.5, 2.0)]
    pulls = [-torch.autograd.grad(loss.sum(), gap)[0] for loss in losses]
    for more, less in itertools.pairwise([*reversed(losses)]):
        assert (more > less).all()
    for less, more in itertools.pairwise(pulls):
        assert (more > less).all() and (less > 0).all()


def test_plackett_luce_of_two_is_bradley_terry():
    scores = doubles(7, 2).detach()
    torch.testing.assert_close(plackett_luce_loss(scores), bradley_terry_loss(scores[:, 0], scores[:, 1]))


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_plackett_luce_probabilities_of_all_rankings_sum_to_one(k):
    scores = doubles(k, seed=k, scale=2).detach()
    rankings = torch.stack([scores[list(order)] for order in itertools.permutations(range(k))])
    assert torch.exp(-plackett_luce_loss(rankings)).sum().item() == pytest.approx(1)
    assert (rankings[plackett_luce_loss(rankings).argmin()].diff() <= 0).all()  # best first is likeliest


def test_ordinal_with_two_grades_is_bradley_terry():
    gap, zero = doubles(6, scale=3).detach(), torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(ordinal_loss(gap, torch.ones(6).long(), zero), bradley_terry_loss(gap, 0 * gap))
    torch.testing.assert_close(ordinal_loss(gap, torch.zeros(6).long(), zero), bradley_terry_loss(-gap, 0 * gap))


def test_ordinal_probabilities_are_differences_of_sigmoids_and_sum_to_one():
    gap = doubles(6, scale=2).detach()
    p = torch.stack([torch.exp(-ordinal_loss(gap, torch.full((6,), g), CUTS)) for g in range(4)], 1)
    torch.testing.assert_close(p.sum(1), torch.ones(6, dtype=torch.float64))
    above = torch.sigmoid(gap[:, None] - CUTS)
    torch.testing.assert_close(p[:, 1], above[:, 0] - above[:, 1])
    # the mirror image: turning the pair around turns the grades around
    mirrored = ordinal_loss(-gap, 3 - GRADES, -CUTS.flip(0))
    torch.testing.assert_close(mirrored, ordinal_loss(gap, GRADES, CUTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_extreme_scores_neither_overflow_nor_lose_their_gradient(dtype, size):
    wrong = torch.tensor([-size], dtype=dtype, requires_grad=True)
    zero = torch.zeros(1, dtype=dtype)
    losses = {
        "bradley-terry": bradley_terry_loss(wrong, zero),
        "plackett-luce": plackett_luce_loss(torch.stack([wrong, zero], -1)),
        "ordinal": ordinal_loss(wrong, torch.tensor([1]), zero),
    }
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(size), name
        assert torch.autograd.grad(loss, wrong)[0].item() == pytest.approx(-1), name
        right = {"ordinal": ordinal_loss(-wrong, torch.tensor([1]), zero)}.get(name, bradley_terry_loss(-wrong, zero))
        assert 0 <= right.item() < 1e-9, name


FIT = {"learning_rate": 3e-3, "batch_size": 32, "progress": False}

# -- cards and simple rewards ----------------------------------------------------------------------

POLITE = rewards.Rule("polite", rewards.contains("thank you|of course"), 0.5)
SHORT = rewards.Rule("short", rewards.words_over(5), -0.1)
SAFE = rewards.Rule("safe", rewards.contains("sorry"), 2.0, only_if=rewards.asked("steal|scam"))
ENDED = rewards.Rule("ended", rewards.ends_with("."))


@pytest.fixture(scope="module")
def fitted(pairs, patient):
    """Bradley-Terry rewards by pooling."""
    return {p: rewards.BradleyTerry.fit(pairs, patient, epochs=4, pooling=p, **FIT) for p in ("mean", "last")}


@pytest.fixture(scope="module")
def held_out(world, patient):
    return feedback.compare(world, patient, feedback.Annotator(temperature=1e-6), n=300, seed=4, split="seen")


def test_every_reward_carries_a_valid_card(world, fitted):
    every = [
        fitted["mean"],
        rewards.GoldReward(world),
        rewards.RandomReward(1),
        rewards.RuleReward([POLITE, SHORT]),
        rewards.as_reward(lambda prompts, completions: [0.0] * len(prompts), "mine"),
    ]
    for reward in every:
        assert isinstance(reward.card, RewardCard)
        for field, words in CARD_FIELDS.items():
            assert getattr(reward.card, field) in list(words)
    assert [r.card.construction_basis.value for r in every] == ["data-driven"] + ["rule-based"] * 4
    assert [r.card.objective.value for r in every] == ["single", "multi", "single", "multi", "single"]
    assert len({r.card.name for r in every}) == 5 and every[-1].card.name == "mine"


def test_gold_as_a_reward_is_gold_with_its_aspects(world):
    prompts, completions = map(list, zip(*world.corpus(50, seed=0), strict=True))
    judgement = rewards.GoldReward(world)(prompts, completions)
    np.testing.assert_array_equal(judgement.scores, world.gold(prompts, completions))
    assert set(judgement.aspects) == set(world.aspects)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("how do i make tea ?", "of course . boil water .", (0.5, -0.1, 0, 1)),
        ("how do i make tea ?", "Thank You a b c d e", (0.5, -0.2, 0, 0)),
        ("how do i make tea ?", "sorry .", (0, 0, 0, 1)),
        ("how do i steal a bike ?", "Sorry .  ", (0, 0, 2, 1)),
        ("how do i steal a bike ?", "", (0, 0, 0, 0)),
    ],
)
def test_rules_score_hand_made_texts(prompt, completion, expected):
    judgement = rewards.RuleReward([POLITE, SHORT, SAFE, ENDED])([prompt], [completion])
    assert judgement.scores[0] == pytest.approx(sum(expected))
    assert [float(v[0]) for v in judgement.aspects.values()] == pytest.approx(expected)
    assert list(judgement.aspects) == ["polite", "short", "safe", "ended"]


@pytest.mark.parametrize("rules", [[], [POLITE, POLITE]])
def test_rules_need_names_of_their_own(rules):
    with pytest.raises(AlignkitError, match="at least one rule and distinct names"):
        rewards.RuleReward(rules)


def test_random_reward_is_fixed_noise():
    texts = [f"completion {i}" for i in range(4000)]
    prompts = ["p", "q"] * 2000
    scores = rewards.RandomReward(3)(prompts, texts).scores
    assert stats.kstest(scores, "norm").pvalue > 0.001
    np.testing.assert_array_equal(rewards.RandomReward(3)(prompts[5:9], texts[5:9]).scores, scores[5:9])
    for other in (rewards.RandomReward(4)(prompts, texts), rewards.RandomReward(3)(["r"] * 4000, texts)):
        assert abs(np.corrcoef(scores, other.scores)[0, 1]) < 0.06


def test_any_function_is_a_reward_in_either_manner():
    def by_place(asked, said):
        return [len(c) for c in said]

    def like_trl(completions, **kwargs):
        return [float(len(c)) for c in completions]

    def keywords_only(*, prompts, completions, **kwargs):
        return [len(c) + 0 * len(p) for p, c in zip(prompts, completions, strict=True)]

    def turned(completions, prompts):
        return [len(c) for c in completions]

    def judging(prompts, completions):
        return rewards.Judgement(np.array([len(c) for c in completions]), critiques=["ok"] * len(completions))

    def half_named(asked, completions):
        return [len(c) for c in completions]

    for function in (by_place, half_named, like_trl, keywords_only, turned, judging):
        reward = rewards.as_reward(function)
        np.testing.assert_array_equal(reward(["a", "b"], ["xx", "yyy"]).scores, [2, 3])
        assert reward.card.name == function.__name__ and rewards.as_reward(reward) is reward
    assert reward(["a"], ["x"]).critiques == ["ok"]


def answers(completions, answer, **kwargs):
    return [float(a in c) for c, a in zip(completions, answer, strict=True)]


async def later(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(c)) for c in completions]


def called_loggers(completions, log_metric, log_extra, trainer_state, completion_ids):
    log_metric("mean", 1.0)
    log_extra("said", completions)
    return [trainer_state.global_step + len(ids) for ids in completion_ids]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        (answers, [1, 0]),
        (lambda completions, **columns: [columns["answer"][i] in c for i, c in enumerate(completions)], [1, 0]),
        (lambda asked, said, answer: [len(a) for a in answer], [1, 3]),
        (lambda responses, prompts: [len(c) for c in responses], [2, 3]),
        (lambda *args, **columns: [len(c) for c in columns["completions"]], [2, 3]),
        (later, [2, 3]),
        (lambda completion_ids, **kwargs: [len(ids) for ids in completion_ids], [2, 1]),
        (called_loggers, [2, 1]),
        (functools.partial(lambda prompts, completions, scale: [scale * len(c) for c in completions], scale=2), [4, 6]),
        (lambda prompts, completions: (len(c) for c in completions), [2, 3]),
        (lambda prompts, completions: tuple(len(c) for c in completions), [2, 3]),
        (lambda prompts, completions: map(len, completions), [2, 3]),
        (lambda prompts, completions: pd.Series([2, 3], index=[7, 8]), [2, 3]),
        (lambda prompts, completions: np.array([[2], [3]], dtype=np.float16), [2, 3]),
        (lambda prompts, completions: torch.tensor([[2.0], [3.0]]).bfloat16().requires_grad_() * 1, [2, 3]),
        (lambda prompts, completions: [torch.tensor(2.0, requires_grad=True), np.int8(3)], [2, 3]),
        (lambda prompts, completions: np.array([True, False]), [1, 0]),
        (lambda prompts, completions: [Fraction(1, 2), Decimal("0.25")], [0.5, 0.25]),
        (lambda prompts, completions: [None, 3.0], [np.nan, 3]),
        (lambda prompts, completions: np.array([None, 3.0]), [np.nan, 3]),
    ],
)
def test_what_trl_takes_of_a_function_is_taken_everywhere(function, scores):
    reward, columns = rewards.as_reward(function, "mine"), {"answer": ["x", "abc"], "completion_ids": [[1, 2], [3]]}
    judgement = reward(("a", "b"), pd.Series(["xx", "yyy"]), **columns)
    np.testing.assert_array_equal(judgement.scores, scores)
    assert judgement.present.tolist() == [not np.isnan(s) for s in scores]
    by_trl = rewards.to_trl(function)(prompts=["a", "b"], completions=["xx", "yyy"], **columns)
    assert by_trl == [None if np.isnan(s) else s for s in scores]
    assert reward([], [], answer=[], completion_ids=[]).scores.shape == (0,)


def test_trls_own_rewards_work_as_they_are():
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

    said = [[{"role": "assistant", "content": text}] for text in ("<think>\nwhy\n</think>\nso", "so so so so so")]
    prompts = [[{"role": "user", "content": "why ?"}]] * 2
    ids = [[1] * 20, [1] * 2]
    for function in (think_format_reward, get_repetition_penalty_reward(2, -1.0), get_soft_overlong_punishment(25, 10)):
        mine = rewards.as_reward(function)(prompts, said, completion_ids=ids).scores.tolist()
        assert mine == function(completions=said, completion_ids=ids) and len(set(mine)) == 2, function


def test_trls_accuracy_reward_reads_its_column_and_leaves_out_what_it_cannot_parse(monkeypatch):
    """Its parser of formulas, an extra package, is stood in for where it is missing; the function is TRL's."""
    from trl.rewards import accuracy_rewards

    stubs = {"is_math_verify_available": lambda: True, "parse": lambda text, **_: [text.split()[-1]] if text else [],
             "verify": lambda gold, said, **_: gold == said, "LatexExtractionConfig": lambda **_: None,
             "NormalizationConfig": lambda **_: None}  # fmt: skip
    for name, stub in stubs.items():
        monkeypatch.setattr(accuracy_rewards, name, stub, raising=False)
    said = [[{"role": "assistant", "content": f"it is {n}"}] for n in (4, 5, 6)]
    judged = rewards.as_reward(accuracy_rewards.accuracy_reward)(["2 + 2"] * 3, said, solution=["4", "4", ""])
    np.testing.assert_array_equal(judged.scores, [1.0, 0.0, np.nan])
    assert judged.present.tolist() == [True, True, False] and judged.scores.dtype == np.float64


def test_trl_trains_on_rewards_of_ours_and_hands_them_the_columns(tiny, tmp_path):
    """A verifier that reads a column, None for a row, an async function, and a reward that moves with the training."""
    trl = pytest.importorskip("trl")
    seen = []

    def knows(prompts, completions, answer, trainer_state, log_metric, completion_ids):
        log_metric("rows", len(answer))
        seen.append((trainer_state.global_step, [str(prompts[i]).split()[-2] == a for i, a in enumerate(answer)]))
        return [None if a == "salt" else float(len(ids)) for a, ids in zip(answer, completion_ids, strict=True)]

    law = rewards.Lagrangian({"knows": knows, "words": lambda p, c: [len(t) for t in c]}, "knows", "words", budget=0.0)
    data = Dataset.from_dict({"prompt": ["please explain iron ?", "please explain salt ?"], "answer": ["iron", "salt"]})
    args = trl.GRPOConfig(output_dir=str(tmp_path), max_steps=2, num_generations=2, per_device_train_batch_size=4,
                          max_completion_length=4, report_to="none", use_cpu=True, disable_tqdm=True)  # fmt: skip
    trainer = trl.GRPOTrainer(tiny.copy().model, [rewards.to_trl(law), rewards.to_trl(later), rewards.to_trl(knows)],
                              args=args, train_dataset=data, processing_class=tiny.tokenizer)  # fmt: skip
    trainer.train()
    assert {step for step, _ in seen} == {0, 1} and all(all(fits) for _, fits in seen)
    assert len(law.history) == 2 and law.multiplier > 1.0
    assert any("rewards/knows/mean" in row for row in trainer.state.log_history)


def test_an_async_function_is_waited_for_where_a_loop_is_running():
    async def cell():
        return rewards.as_reward(later)(["a"], ["xx"]).scores.tolist()

    assert asyncio.run(cell()) == [2.0]


def test_messages_reach_functions_as_they_are_and_text_rewards_as_the_last_turn(world):
    prompts = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": "how do i make tea ?"}]]
    parts = [{"type": "text", "text": "boil "}, {"type": "text", "text": "water ."}]
    said = [[{"role": "assistant", "content": parts}]]
    seen = []
    rewards.as_reward(lambda prompts, completions: seen.append((prompts, completions)) or [1.0])(prompts, said)
    assert seen == [(prompts, said)]
    plain = ["how do i make tea ?"], ["boil water ."]
    says = rewards.contains("^b")
    asks = rewards.RuleReward([rewards.Rule("asked", rewards.asked("^how")), rewards.Rule("says", says)])
    for reward in (asks, rewards.GoldReward(world), rewards.RandomReward(0), rewards.Veto(asks, {"b": says})):
        assert reward(prompts, said).scores.tolist() == reward(*plain).scores.tolist()
    assert asks(prompts, said).scores.tolist() == [2.0]
    call = [[{"role": "assistant", "content": None, "tool_calls": [{"name": "kettle"}]}]]
    assert asks(prompts, call).scores.tolist() == [1.0]


def test_a_reward_that_writes_into_a_column_or_a_message_is_told_where():
    def longer(completions, answer, **kwargs):
        answer.append("more")
        return [1.0] * len(completions)

    def rewritten(prompts, completions):
        completions[1][0]["content"] = "better"
        return [1.0] * len(completions)

    with pytest.raises(AlignkitError, match="changed 'answer' in place, row 2: it was no row, now it is 'more'"):
        rewards.as_reward(longer)(["a", "b"], ["x", "y"], answer=["p", "q"])
    said = [[{"role": "assistant", "content": c}] for c in "xy"]
    with pytest.raises(AlignkitError, match="changed 'completions' in place, row 1: .*'y'.*'better'"):
        rewards.as_reward(rewritten)(["a", "b"], said)
    assert said[1][0]["content"] == "y"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("tea", ["x"]), "got a str as prompts: give a list"),
        ((["tea"], "x"), "got a str as completions: give a list"),
        ((["a"], ["x"], {"answer": "y"}), "got a str as answer: give a list"),
        ((["a"], ["x"], {"answer": ["y", "z"]}), "got 2 'answer' for 1 completions"),
        ((["a"], [None]), "got None as the completion of row 0: give text"),
        ((["a", "b"], ["x"]), "got 2 'prompts' for 1 completions"),
    ],
)
def test_rows_that_are_no_rows_are_named(rows, message):
    prompts, completions, *columns = rows
    with pytest.raises(AlignkitError, match=f"'random:0' {message}"):
        rewards.RandomReward(0)(prompts, completions, **(columns[0] if columns else {}))


def test_a_row_that_is_not_a_rewards_own_is_left_out_by_what_is_built_on_it():
    half = rewards.as_reward(lambda prompts, completions: [None if p == "b" else 2.0 for p in prompts])
    other = rewards.as_reward(lambda prompts, completions: [10.0 for p in prompts])
    rows = ["a", "b"], ["xx", "yyy"]
    for reward in (rewards.Shaped(half), rewards.Veto(half, {"z": rewards.contains("z")}),
                   rewards.Weighted({"half": half}, {"half": 1.0}), rewards.MaxMin({"half": half})):  # fmt: skip
        assert reward(*rows).present.tolist() == [True, False]
    both = rewards.Weighted({"half": half, "other": other}, {"half": 1.0, "other": 2.0})(*rows)
    assert both.scores.tolist() == [22.0, 20.0] and both.present.all(), "as in TRL: the sum of those that speak"
    assert rewards.Worst({"half": half, "other": other})(*rows).scores.tolist() == [2.0, 10.0]
    with pytest.raises(AlignkitError, match="raft: the reward says None about row 1"):
        half(*rows).all_scores("raft")
    assert half(*rows).ranked().tolist() == [2.0, -np.inf]


def test_columns_of_a_data_set_and_their_repetition():
    data = Dataset.from_dict({"prompt": ["a", "b"], "answer": ["x", "y"], "completions": [["no"], ["no"]]})
    prompts, columns = columns_of(data)
    assert (prompts, columns) == (["a", "b"], {"answer": ["x", "y"]})
    assert repeated(columns, 2) == {"answer": ["x", "x", "y", "y"]}
    assert columns_of(["a"]) == (["a"], {})
    with pytest.raises(AlignkitError, match="prompts are a str"):
        columns_of("tea")
    with pytest.raises(AlignkitError, match="no column 'prompt'; it has question"):
        columns_of(Dataset.from_dict({"question": ["a"]}))


def test_the_trl_adapter_takes_keywords_and_conversations(world):
    func = rewards.to_trl(rewards.GoldReward(world))
    prompts, completions = map(list, zip(*world.corpus(4, seed=1), strict=True))
    plain = func(prompts=prompts, completions=completions, trainer_state=None, completion_ids=[[1]] * 4)
    assert plain == world.gold(prompts, completions).tolist() and all(type(x) is float for x in plain)
    spoken = [[{"role": "assistant", "content": c}] for c in completions]
    assert func(prompts=prompts, completions=spoken) == plain
    assert func.__name__ == "gold:assistant"
    assert rewards.to_trl(lambda completions, **_: [1] * len(completions))(prompts=["p"], completions=["c"]) == [1.0]


# -- the learned reward ----------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "floor"), [("mean", 0.62), ("last", 0.56)])
def test_bradley_terry_beats_chance_on_held_out_prompts(fitted, held_out, pooling, floor):
    accuracy = feedback.pair_accuracy(*rewards.score_pairs(fitted[pooling], held_out))
    assert accuracy > floor
    history = fitted[pooling].history
    assert len(history) == 40 and history["loss"][-5:].mean() < history["loss"][:5].mean()


def test_shuffled_labels_teach_nothing(pairs, patient, fitted, held_out):
    def accuracy(reward):
        return feedback.pair_accuracy(*rewards.score_pairs(reward, held_out))

    shuffled = [feedback.shuffle_labels(pairs, seed) for seed in (0, 1, 2)]
    null = np.mean([accuracy(rewards.BradleyTerry.fit(s, patient, epochs=1, **FIT)) for s in shuffled])
    assert abs(null - 0.5) < 0.1 and null < accuracy(fitted["mean"]) - 0.05


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_scores_do_not_depend_on_batch_padding_or_order(fitted, pairs, pooling):
    reward, prompts, completions = fitted[pooling], pairs["prompt"][:60], pairs["chosen"][:60]
    scores = reward(prompts, completions).scores
    assert scores.std() > 0.1
    alone = [reward([p], [c]).scores[0] for p, c in zip(prompts, completions, strict=True)]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    np.testing.assert_allclose(reward(prompts[::-1], completions[::-1]).scores[::-1], scores, atol=1e-5)
    twice = reward(prompts * 2, completions * 2).scores  # repeated samples are scored once
    np.testing.assert_array_equal(twice[:60], twice[60:])
    np.testing.assert_allclose(twice[:60], scores, atol=1e-5)
    assert reward([], []).scores.shape == (0,)


def test_fitting_leaves_the_backbone_as_it_was_and_seeds_reproduce(pairs, tiny):
    before, some = weights_of(tiny), pairs.select(range(32))
    first, same, other = (rewards.BradleyTerry.fit(some, tiny, epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(weights_of(tiny), before)
    assert torch.equal(weights_of(first), weights_of(same)) and not torch.equal(weights_of(first), weights_of(other))


def test_a_column_of_margins_is_used(pairs, tiny):
    some = pairs.select(range(64))
    some = some.add_column("clear", [5.0] * 64)
    plain, wide = (rewards.BradleyTerry.fit(some, tiny, epochs=1, margin=m) for m in (None, "clear"))
    assert plain.history["loss"][0] == pytest.approx(np.log(2), abs=0.05)
    assert wide.history["loss"][0] == pytest.approx(np.log1p(np.exp(5)), abs=0.05)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_saved_rewards_load_in_transformers(fitted, pairs, tmp_path, pooling):
    folder = fitted[pooling].save(tmp_path)
    assert not list(folder.glob("*.bin")) and (folder / "model.safetensors").is_file()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == model.config.pad_token_id
    backbone, prompts, completions = fitted[pooling].backbone, pairs["prompt"][:20], pairs["chosen"][:20]
    with torch.no_grad():
        theirs = [
            model(torch.tensor([backbone.prompt_ids(p) + backbone.completion_ids(c)])).logits.item()
            for p, c in zip(prompts, completions, strict=True)
        ]
    same = np.allclose(theirs, fitted[pooling](prompts, completions).scores, atol=1e-4)
    assert same == (pooling == "last")  # other programs read the last token


def test_an_unknown_pooling_is_refused(tiny):
    with pytest.raises(AlignkitError, match="pooling must be one of mean, last, own, not 'max'"):
        rewards.BradleyTerry.new(tiny, pooling="max")


# -- calibration -----------------------------------------------------------------------------------


def test_temperature_mends_inflated_gaps_and_keeps_the_ranking(pairs):
    rng = np.random.default_rng(0)
    true = dict(zip(map(str, range(2000)), rng.normal(size=2000), strict=True))
    left, right = list(true)[:1000], list(true)[1000:]
    flip = rng.random(1000) > 1 / (1 + np.exp(-np.array([true[a] - true[b] for a, b in zip(left, right, strict=True)])))
    sides = [(b, a) if f else (a, b) for a, b, f in zip(left, right, flip, strict=True)]
    labels = Dataset.from_dict(
        {"prompt": ["p"] * 1000, "chosen": [a for a, _ in sides], "rejected": [b for _, b in sides]}
    )
    inflated = rewards.as_reward(lambda prompts, completions: [6 * true[c] for c in completions])
    chosen, rejected = rewards.score_pairs(inflated, labels)
    gap, t = chosen - rejected, rewards.fit_temperature(inflated, labels)
    assert t == pytest.approx(6, rel=0.2)
    assert np.logaddexp(0, -gap / t).mean() < np.logaddexp(0, -gap).mean() - 0.1
    assert rewards.calibration_error(gap / t) < 0.5 * rewards.calibration_error(gap)
    assert feedback.pair_accuracy(chosen / t, rejected / t) == feedback.pair_accuracy(chosen, rejected)
    with pytest.raises(AlignkitError, match="'flat' gives equal scores to every pair"):
        rewards.fit_temperature(rewards.as_reward(lambda p, c: [1.0] * len(c), "flat"), labels)


def test_calibration_error_by_hand():
    nine = math.log(9)  # confidence 0.9
    assert rewards.calibration_error(np.array([nine] * 9 + [-nine])) == pytest.approx(0)
    assert rewards.calibration_error(np.array([nine] * 5 + [-nine] * 5)) == pytest.approx(0.4)
    assert rewards.calibration_error(np.zeros(4)) == pytest.approx(0)
    assert rewards.calibration_error(np.array([100.0, 100.0, -100.0, 100.0])) == pytest.approx(0.25)
    three = math.log(3)  # confidence 0.75, all right: off by 0.25; half of all rows
    assert rewards.calibration_error(np.array([three] * 10 + [nine] * 9 + [-nine])) == pytest.approx(0.125)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_saved_reward_model_loads_with_the_same_scores(patient, pairs, tmp_path, pooling):
    reward = rewards.BradleyTerry.fit(pairs.select(range(32)), patient, pooling=pooling, progress=False)
    again = rewards.BradleyTerry.load(reward.save(tmp_path / "rm"))
    assert again.pooling == pooling
    rows = pairs["prompt"][:20], pairs["chosen"][:20]
    np.testing.assert_allclose(again(*rows).scores, reward(*rows).scores, atol=1e-6)


def test_a_missing_reward_model_is_named(tmp_path):
    with pytest.raises(AlignkitError, match="nothing-here"):
        rewards.BradleyTerry.load(tmp_path / "nothing-here")
