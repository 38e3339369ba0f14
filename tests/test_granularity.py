"""Finer credit, exact and unbiased by enumeration; step, token and staged rewards; labels from rollouts."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset

from alignkit import feedback, optimize, rewards, worlds
from alignkit.errors import AlignkitError, DataError, RewardError
from alignkit.optimize import (
    group_normalized,
    leave_one_out,
    reward_to_go,
    token_rewards,
)
from alignkit.policy import load_policy
from alignkit.rewards import ByToken, Judgement, ProcessReward, Stages, aggregate_steps, sentence_ends
from alignkit.rewards.texts import step_tokens

NAN = float("nan")


@pytest.fixture(scope="module")
def sums():
    return worlds.load("arithmetic")


@pytest.fixture(scope="module")
def adder():
    return load_policy("arithmetic")


@pytest.fixture(scope="module")
def answers(sums, adder):
    return adder.rollout(sums.prompts("feedback")[:150], 1, seed=5)


@pytest.fixture(scope="module")
def marked(sums, answers):
    rows = Dataset.from_dict({"prompt": answers.prompts, "completion": answers.completions})
    return feedback.mark_steps(sums, rows, feedback.Annotator())


@pytest.fixture(scope="module")
def prm(marked, adder):
    return ProcessReward.fit(marked, adder, epochs=2, progress=False)


# -- advantages ------------------------------------------------------------------------------------


def test_reward_to_go_sums_what_comes_after():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 0.0]])
    assert reward_to_go(rewards).tolist() == [[7, 6, 4], [-1, -1, 0]]


def test_leave_one_out_by_hand():
    given = torch.tensor([[[NAN, 1.0, NAN], [0.0, NAN, 2.0]]])
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1]]])
    # to go after 0, 1, 2 rewards: (1, 0, 0) and (2, 2, 0); each token after as many rewards as were paid before it
    assert leave_one_out(given, mask).tolist() == [[[-1, -1, 0], [1, 2, 2]]]


def test_group_normalized_by_hand():
    given = torch.tensor([[[NAN, 1.0, 3.0], [NAN, 5.0, NAN]]])
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]]])
    spread = 2.0  # of 1, 3, 5; their mean is 3
    expected = torch.tensor([[[-2.0, -2.0, 0.0], [2.0, 2.0, 0.0]]]) / (spread + 1e-4)
    torch.testing.assert_close(group_normalized(given, mask), expected)


def test_one_reward_at_the_end_is_the_response_credit():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    at_end = torch.full((3, 4, 5), NAN)
    at_end[..., -1] = scores
    mask = torch.ones(3, 4, 5)
    torch.testing.assert_close(leave_one_out(at_end, mask), leave_one_out(scores)[..., None].expand(3, 4, 5))
    early, shorter = at_end.roll(-2, dims=-1), mask.clone()  # and wherever the end is
    early[1:], shorter[:1, :, 3:] = at_end[1:], 0
    torch.testing.assert_close(leave_one_out(early, shorter), leave_one_out(scores)[..., None] * shorter)
    normalized = group_normalized(scores)[..., None]
    torch.testing.assert_close(group_normalized(at_end, mask), normalized.expand(3, 4, 5))


@pytest.mark.parametrize("advantages_of", [leave_one_out, group_normalized])
def test_equal_rewards_and_padding_teach_nothing(advantages_of):
    same = torch.full((2, 3, 4), 0.1)
    assert advantages_of(same, torch.ones(2, 3, 4)).abs().max() < 1e-6
    given, mask = torch.randn(2, 3, 4), torch.ones(2, 3, 4)
    mask[:, :, 3] = 0
    garbage = given.clone()
    garbage[:, :, 3] = 99.0
    torch.testing.assert_close(advantages_of(garbage, mask), advantages_of(given, mask))
    assert (advantages_of(garbage, mask)[..., 3] == 0).all()


@pytest.mark.parametrize("advantages_of", [leave_one_out, group_normalized])
def test_a_group_of_one_is_an_error(advantages_of):
    with pytest.raises(AlignkitError, match="more completions"):
        advantages_of(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))


def test_with_a_reward_for_every_token_it_is_reward_to_go_against_the_others():
    given, mask = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2)), torch.ones(2, 3, 4)
    mask[0, 1, 2:] = 0
    rest = reward_to_go(given * mask)
    torch.testing.assert_close(leave_one_out(given, mask), (rest - (rest.sum(1, keepdim=True) - rest) / 2) * mask)


@pytest.mark.parametrize("first", [0.2, NAN], ids=["each token paid", "first token unpaid"])
@pytest.mark.parametrize("k", [2, 3])
def test_leave_one_out_is_an_unbiased_policy_gradient(k, first):
    """All groups of k answers of up to two tokens: a first token 0 or 1; 1 ends the answer, after 0 comes a second.

    Rewards at each token; the exact gradient is that of the expected sum.
    """
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    paths = [(1,), (0, 0), (0, 1), (0, 2)]
    given = {(1,): [0.7], (0, 0): [first, 1.0], (0, 1): [first, -2.0], (0, 2): [first, 0.3]}

    def token_logp(z):
        first, second = torch.log_softmax(z[0, :2], -1), torch.log_softmax(z[1], -1)
        return [torch.stack([first[p[0]], second[p[1]]]) if len(p) == 2 else first[p[0]][None] for p in paths]

    def expected(z):
        return sum(logp.sum().exp() * np.nansum(given[path]) for path, logp in zip(paths, token_logp(z), strict=True))

    (exact,) = torch.autograd.grad(expected(logits), logits)
    table = torch.tensor([given[path] + [0.0] * (2 - len(path)) for path in paths], dtype=torch.float64)
    lengths = torch.tensor([[1.0, float(len(path) == 2)] for path in paths], dtype=torch.float64)
    logp = token_logp(logits)
    estimate = torch.zeros_like(exact)
    for group in itertools.product(range(4), repeat=k):
        group = list(group)
        advantage = leave_one_out(table[group][None], lengths[group][None])[0]
        surrogate = sum((advantage[i, : len(logp[g])] * logp[g]).sum() for i, g in enumerate(group)) / k
        (slope,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
        estimate += torch.stack([logp[g].sum() for g in group]).sum().exp().detach() * slope
    torch.testing.assert_close(estimate, exact, atol=1e-12, rtol=0)
    assert exact.abs().max() > 0.05


# -- credit ----------------------------------------------------------------------------------------


def test_a_step_is_paid_at_its_last_token(sums, adder):
    prompt = sums.prompts("seen")[0]
    rollout = adder.rollout([prompt], 3, seed=1)
    ends = [sentence_ends(c) for c in rollout.completions]
    steps = [np.arange(1, len(e) + 1) for e in ends]
    laid = token_rewards(Judgement(np.zeros(3), steps=steps, ends=ends), adder, rollout)
    stop = adder.tokenizer.convert_tokens_to_ids(".")
    for row in range(3):
        at_stops = laid[row][rollout.batch.completion[row] == stop]
        assert at_stops.tolist() == steps[row].tolist()
        assert laid[row][rollout.batch.completion[row] != stop].isnan().all()


def test_step_tokens_are_those_of_reading_each_beginning(adder):
    texts = ["7 + 5 + 0 = 1 2 . 3 + 8", "", "answer 6 2 2 ."]
    ends = [sentence_ends(text) for text in texts]
    slow = [[len(adder.completion_ids(text[:e], ended=False)) - 1 for e in row]
            for text, row in zip(texts, ends, strict=True)]  # fmt: skip
    found = [step_tokens(adder, adder.completion_ids(text), text, row) for text, row in zip(texts, ends, strict=True)]
    assert found == slow == [[8, 11], [], [4]]


def test_rewards_that_do_not_fit_are_an_error(adder, sums):
    rollout = adder.rollout(sums.prompts("seen")[:1], 2, seed=1)
    ends = [sentence_ends(c) for c in rollout.completions]
    for judgement, message in [
        (Judgement(np.zeros(2), steps=[np.ones(len(e) + i) for i, e in enumerate(ends)], ends=ends), "row 1: .* step"),
        (Judgement(np.zeros(2), steps=[np.ones(1)], ends=ends[:1]), "1 completions, but there are 2"),
        (Judgement(np.zeros(2), steps=[np.ones(1)] * 2), "must say where they end"),
        (Judgement(np.zeros(2), tokens=[np.ones(90), np.ones(1)]), "row 0: 90 token rewards"),
    ]:
        with pytest.raises(RewardError, match=message):
            token_rewards(judgement, adder, rollout)
    assert token_rewards(Judgement(np.zeros(2)), adder, rollout) is None


@pytest.mark.slow
def test_step_rewards_teach_and_response_credit_ignores_them(sums, adder):
    def steps_only(prompts, completions):
        """Says nothing in its scores and everything in its steps."""
        ends = [sentence_ends(c) for c in completions]
        added = [worlds.gold_by_step(sums, p, c, e) for p, c, e in zip(prompts, completions, ends, strict=True)]
        return Judgement(np.zeros(len(completions)), steps=added, ends=ends)

    options = dict(beta=0.0, steps=10, learning_rate=1e-3, progress=False)
    treated = {how: optimize.rloo(adder, sums.prompts(), steps_only, credit=how, **options)
               for how in ("finest", "response")}  # fmt: skip
    gold = {how: sums.gold(out.prompts, out.completions).mean()
            for how, policy in {"before": adder, **treated}.items()
            for out in [policy.rollout(sums.prompts("seen")[:60], 4, seed=2)]}  # fmt: skip
    assert gold["finest"] > gold["before"] + 0.1
    assert gold["response"] == pytest.approx(gold["before"])


def test_an_unknown_credit_is_an_error(sums, adder):
    with pytest.raises(AlignkitError, match="credit must be one of finest, response"):
        optimize.rloo(adder, sums.prompts(), sums.correct, credit="fine")


# -- process rewards -------------------------------------------------------------------------------


def test_aggregates_by_hand():
    p = np.array([0.9, 0.5, 0.8])
    expected = {"product": [0.9, 0.45, 0.36], "min": [0.9, 0.5, 0.5], "last": [0.9, 0.5, 0.8],
                "mean": [0.9, 0.7, 2.2 / 3], "sum": [0.8, 0.8, 1.4]}  # fmt: skip
    for how, running in expected.items():
        np.testing.assert_allclose(aggregate_steps(p, how), running)
        assert len(aggregate_steps(np.zeros(0), how)) == 0
    with pytest.raises(AlignkitError, match="aggregate must be one of"):
        aggregate_steps(p, "median")


def test_a_process_reward_tells_right_steps_from_wrong_ones(sums, adder, prm):
    held = adder.rollout(sums.prompts("seen")[:80], 1, seed=6)
    read = prm.step_probabilities(held.prompts, held.completions)
    rows = [(q, mark) for p, c, values in zip(held.prompts, held.completions, read, strict=True)
            for q, mark in zip(values, sums.step_labels(p, c), strict=True)]  # fmt: skip
    right, wrong = ([q for q, mark in rows if mark == side] for side in (True, False))
    assert np.mean([a > b for a in right for b in wrong]) > 0.85
    assert prm.card.granularity == "step"


@pytest.mark.parametrize("how", rewards.process.AGGREGATES)
def test_what_steps_add_sums_to_the_score(prm, answers, how):
    judged = prm.but(aggregate=how)(answers.prompts[:20], answers.completions[:20])
    assert [len(s) for s in judged.steps] == [len(e) for e in judged.ends]
    np.testing.assert_allclose([s.sum() for s in judged.steps], judged.scores, atol=1e-9)
    levels = prm.step_probabilities(answers.prompts[:20], answers.completions[:20])
    np.testing.assert_allclose([aggregate_steps(s, how)[-1] for s in levels], judged.scores, atol=1e-9)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_scores_do_not_depend_on_the_batch(marked, adder, answers, pooling):
    model = ProcessReward.fit(marked.select(range(40)), adder, pooling=pooling, epochs=1, progress=False)
    p, c = answers.prompts[:12], answers.completions[:12]
    together = model.step_probabilities(p, c)
    alone = [model.step_probabilities([a], [b])[0] for a, b in zip(p, c, strict=True)]
    for one, two in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_step_is_judged_by_what_comes_before_it_alone(prm, answers):
    prompt, text = answers.prompts[0], answers.completions[0]
    first = text[: sentence_ends(text)[0]]
    whole, part = prm.step_probabilities([prompt] * 2, [text, first])
    assert whole[0] == pytest.approx(part[0], abs=1e-5)


def test_saying_nothing_earns_nothing(prm, answers):
    judged = prm(answers.prompts[:1], [""])
    assert judged.scores.tolist() == [0.0] and len(judged.steps[0]) == 0


def test_units_and_ends(marked, adder, prm, answers):
    texts = [[" ".join(row)] for row in marked["completions"]]
    verdicts = [[all(row)] for row in marked["labels"]]
    whole = Dataset.from_dict({"prompt": marked["prompt"][:], "completions": texts, "labels": verdicts})
    orm = ProcessReward.fit(whole, adder, unit="response", epochs=1, progress=False)
    orm = orm.but(ends_of=lambda text: [len(text)])
    assert orm.card.granularity == "response"
    assert all(len(s) == 1 for s in orm(answers.prompts[:5], answers.completions[:5]).steps)
    assert prm.but(unit="segment").card.granularity == "segment" and prm.card.granularity == "step"
    with pytest.raises(AlignkitError, match="nothing called 'units'"):
        prm.but(units="step")


def test_soft_labels_and_no_surprise(marked, adder):
    labels = [[0.9 if v else 0.2 for v in row] for row in marked["labels"][:40]]
    few = marked.select(range(40))
    soft = Dataset.from_dict({"prompt": few["prompt"][:], "completions": few["completions"][:], "labels": labels})
    model = ProcessReward.fit(soft, adder, surprise=False, epochs=1, progress=False)
    assert model.surprise is None and np.isfinite(model.history["loss"]).all()
    assert ProcessReward.fit(soft, adder, epochs=1, progress=False).surprise[0] > 0  # likelier steps are right


def test_a_saved_process_reward_scores_the_same(prm, answers, tmp_path):
    prm.but(aggregate="min", unit="segment").save(tmp_path / "prm")
    again = ProcessReward.load(tmp_path / "prm")
    assert (again.aggregate, again.card.granularity, again.pooling) == ("min", "segment", "mean")
    want = prm.but(aggregate="min")(answers.prompts[:6], answers.completions[:6]).scores
    np.testing.assert_allclose(again(answers.prompts[:6], answers.completions[:6]).scores, want, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "labels", "message"),
    [
        (["1 + 1 + 0 = 0 2 .", "answer 2 ."], [True], r"row 1: 2 steps, labels \[1.0\]; give one"),
        ([], [], "row 1: 'completions' must be a list of steps, at least one"),
        (["answer 2 .", " "], [True, True], "row 1: 'completions' must be a list of steps"),
        (["answer 2 ."], [1.5], "row 1: label 1.5"),
    ],
)
def test_steps_and_labels_that_do_not_match_are_an_error(adder, steps, labels, message):
    bad = [{"prompt": "1 0 0 + 1 0 0 =", "completions": ["answer 2 0 0 ."], "labels": [1.0]},
           {"prompt": "1 0 0 + 1 0 0 =", "completions": steps, "labels": [float(v) for v in labels]}]  # fmt: skip
    with pytest.raises(DataError, match=message):
        ProcessReward.fit(Dataset.from_list(bad), adder)


def test_other_bad_input_to_fit(marked, adder):
    with pytest.raises(DataError, match="missing \\['labels'\\]"):
        ProcessReward.fit(marked.remove_columns("labels"), adder)
    with pytest.raises(AlignkitError, match="unit must be one of step, segment, response, not 'word'"):
        ProcessReward.fit(marked, adder, unit="word")
    good = [[True] * len(row) for row in marked["labels"]]
    same = Dataset.from_dict({"prompt": marked["prompt"][:], "completions": marked["completions"][:], "labels": good})
    with pytest.raises(DataError, match="nothing to learn"):
        ProcessReward.fit(same, adder)


# -- labels ----------------------------------------------------------------------------------------


def test_rollouts_find_what_can_not_end_well(sums, adder):
    prompt = sums.prompts("seen")[0]
    right = sums.segments(sums.ideal(prompt))
    digits = right[0].split()
    wrong = [" ".join([*digits[:-2], str((int(digits[-2]) + 5) % 10), "."]), *right[1:-1], "answer 1 ."]
    labels = feedback.rollout_labels(adder, [prompt, prompt, prompt], [right, wrong, right], sums.correct, n=16, seed=1)
    good, bad, again = labels["labels"]
    assert len(good) == len(right) and good[-1] == 1.0 and bad[-1] == 0.0
    assert good[0] > bad[0] + 0.2 and all(0 <= v <= 1 for v in good + bad)
    assert again == good and labels["rollouts"] == [16 * 3, 16 * 3, 0]  # equal beginnings are paid for once
    hard = feedback.rollout_labels(adder, [prompt], [right], sums.correct, n=16, hard=True, seed=1)["labels"][0]
    assert set(hard) <= {0.0, 1.0} and all(h >= s for h, s in zip(hard, good, strict=True))


def test_bad_input_to_rollouts(sums, adder):
    prompt = sums.prompts("seen")[0]
    for prompts, steps, k, message in [
        ([prompt], [["answer 1 ."]], 0, "n must be at least 1"),
        ([prompt], [[]], 2, "row 0: a list of steps is needed"),
        ([[{"role": "user", "content": prompt}]], [["answer 1 ."]], 2, "row 0: the prompt is list"),
    ]:
        with pytest.raises(AlignkitError, match=message):
            feedback.rollout_labels(adder, prompts, steps, sums.correct, n=k)


# -- tokens and stages -----------------------------------------------------------------------------


def test_tokens_sum_to_the_score_of_the_model(pairs, patient):
    model = rewards.BradleyTerry.fit(pairs.select(range(64)), patient, epochs=1, progress=False)
    by_token = ByToken(model)
    prompts, texts = [*pairs["prompt"][:9], pairs["prompt"][0]], [*pairs["chosen"][:9], ""]
    judged = by_token(prompts, texts)
    np.testing.assert_allclose(judged.scores, model(prompts, texts).scores, atol=1e-5)
    np.testing.assert_allclose([t.sum() for t in judged.tokens], judged.scores)
    assert [len(t) for t in judged.tokens] == [len(patient.completion_ids(c)) for c in texts]
    assert by_token.card.granularity == "token" and model.card.granularity == "response"
    model.pooling = "last"
    with pytest.raises(RewardError, match="pooling='mean'"):
        ByToken(model)


def test_stages_advance_when_the_batch_passes_the_threshold_and_not_before():
    said = {"form": 0.0, "content": 0.0, "style": 5.0}
    parts = {name: lambda p, c, name=name: np.full(len(c), said[name]) for name in said}
    stages = Stages(parts, {"form": 1.0, "content": 2.0})
    batch, fresh = (["p"] * 32, ["c"] * 32), stages.state()

    def score(values, batch=batch):
        said.update(values)
        judgement = stages(*batch)
        stages.update(judgement)
        return judgement.scores[0]

    assert score({}) == 0.0 and stages.stage == 0
    assert score({"form": 1.0}, (["p"], ["c"])) == 1.0 and stages.stage == 0  # a look at one example moves nothing
    assert stages(*batch).scores[0] == 1.0 and stages.stage == 0  # nor does scoring
    assert score({"form": 1.0}) == 1.0 and stages.stage == 1  # counts from the next batch on
    assert score({"content": 1.5}) == 2.5 and stages.stage == 1
    assert score({"content": 2.5}) == 3.5 and stages.stage == 2
    assert score({"form": -1.0}) == 6.5 and stages.stage == 2  # the last stage has no end; earlier ones still count
    assert stages.log == [0, 0, 1, 1, 2] and stages.card.granularity == "multi-stage"
    stages.restore(fresh)
    assert score({"form": 0.5}) == 0.5 and stages.stage == 0


@pytest.mark.parametrize("thresholds", [{}, {"form": 1.0, "style": 1.0}])
def test_stages_need_a_threshold_for_each_but_the_last(thresholds):
    with pytest.raises(AlignkitError, match="a threshold for each but the last"):
        Stages({"form": len, "style": len}, thresholds)
