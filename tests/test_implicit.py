"""The reward that lives in a policy: its equation, its tokens, its optimum, and what can be wrong with its inputs."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from alignkit import optimize, rewards
from alignkit.errors import AlignkitError, DataError, RewardError
from alignkit.lab.build import make_policy
from alignkit.optimize import token_rewards
from alignkit.rewards import ImplicitReward, Judgement
from alignkit.rewards.data import encode_pairs
from alignkit.worlds.bandit import BanditWorld, optimum


def nudged(policy, seed=0, by=0.05):
    """The policy after a random change of its weights."""
    other = policy.copy("nudged")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)
    return other


@pytest.fixture(scope="module")
def moved(patient):
    return nudged(patient)


@pytest.fixture(scope="module")
def asked(world, patient):
    rollout = patient.rollout(world.prompts("test")[:6], 3, seed=0)
    return rollout.prompts, rollout.completions


def test_is_beta_times_the_log_ratio_summed_over_tokens(patient, moved, asked):
    logp, ref = (policy.logprobs(*asked)[0].double().sum(1).numpy() for policy in (moved, patient))
    scores = ImplicitReward(moved, patient, beta=0.3)(*asked).scores
    np.testing.assert_allclose(scores, 0.3 * (logp - ref), atol=1e-4)
    assert np.abs(scores).min() > 1e-3
    np.testing.assert_allclose(ImplicitReward(patient, patient)(*asked).scores, 0.0, atol=1e-6)


def test_its_differences_are_the_margin_in_the_dpo_loss(patient, moved, pairs):
    some = pairs.select(range(16))
    chosen, rejected = rewards.score_pairs(ImplicitReward(moved, patient, beta=0.3), some)
    batch = encode_pairs(patient, some)
    logp, ref = (optimize.summed_logprobs(policy, batch).chunk(2) for policy in (moved, patient))
    loss = optimize.dpo_loss(*logp, *ref, beta=0.3)
    np.testing.assert_allclose(loss.numpy(), np.logaddexp(0, rejected - chosen), atol=1e-4)


@pytest.mark.parametrize("length", ["sum", "mean"])
@pytest.mark.parametrize("free", [False, True])
def test_token_credits_sum_to_the_score_one_for_each_token(patient, moved, asked, length, free):
    options = {"beta": 0.3, "length": length}
    reference = None if free else patient
    said = ImplicitReward(moved, reference, granularity="token", **options)(*asked)
    whole = ImplicitReward(moved, reference, **options)(*asked)
    assert whole.tokens is None
    np.testing.assert_allclose(said.scores, whole.scores, atol=1e-12)
    np.testing.assert_allclose([t.sum() for t in said.tokens], said.scores, atol=1e-12)
    assert [len(t) for t in said.tokens] == [len(patient.completion_ids(c)) for c in asked[1]]


def test_without_a_reference_the_mean_is_simpos_reward(moved, asked):
    logp, mask = moved.logprobs(*asked)
    expected = 2.0 * logp.double().sum(1) / mask.sum(1)
    scores = ImplicitReward(moved, None, beta=2.0, length="mean")(*asked).scores
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
    assert (scores < 0).all()


def test_does_not_depend_on_batch_padding_or_repetition(patient, moved, asked):
    reward = ImplicitReward(moved, patient, granularity="token")
    prompts, completions = asked
    together = reward(prompts, completions)
    alone = [reward([prompt], [text]).scores[0] for prompt, text in zip(prompts, completions, strict=True)]
    np.testing.assert_allclose(alone, together.scores, atol=1e-5)
    twice = reward(prompts[::-1] * 2, completions[::-1] * 2)
    np.testing.assert_allclose(twice.scores, np.tile(together.scores[::-1], 2), atol=1e-5)
    for tokens, again in zip(together.tokens, twice.tokens[::-1], strict=False):
        np.testing.assert_allclose(tokens, again, atol=1e-5)


def test_the_same_text_after_another_prompt_is_another_answer(world, patient, moved):
    first, second = world.prompts("test")[0], world.prompts("test")[8]
    alone = ImplicitReward(moved, patient)([first], ["thank you for asking ."]).scores
    both = ImplicitReward(moved, patient)([first, second], ["thank you for asking ."] * 2).scores
    assert both[0] == pytest.approx(alone[0], abs=1e-5) and abs(both[0] - both[1]) > 1e-4


def test_an_empty_completion_is_its_end_token_and_no_completion_is_no_score(world, patient, moved):
    reward = ImplicitReward(moved, patient, beta=0.3, granularity="token")
    prompt = world.prompts("test")[0]
    said = reward([prompt], [""])
    end = [policy.logprobs([prompt], [""])[0].item() for policy in (moved, patient)]
    assert len(said.tokens[0]) == 1
    assert said.scores[0] == pytest.approx(0.3 * (end[0] - end[1]), abs=1e-5)
    assert reward([], []).scores.shape == (0,)


def test_messages_are_prompts_too(patient, moved, world):
    texts = world.prompts("test")[:2]
    policies = [policy.copy() for policy in (moved, patient)]
    for policy in policies:
        policy.tokenizer = copy.deepcopy(policy.tokenizer)
        policy.tokenizer.chat_template = "{{ bos_token }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    chats = [[{"role": "user", "content": text}] for text in texts]
    scores = ImplicitReward(*policies)(chats, ["of course ."] * 2).scores
    np.testing.assert_allclose(scores, ImplicitReward(moved, patient)(texts, ["of course ."] * 2).scores, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "granularity", "source"),
    [
        ({}, "response", "2305.18290"),
        ({"granularity": "token"}, "token", "2404.12358"),
        ({"reference": None}, "response", "2405.14734"),
    ],
)
def test_the_card_says_what_it_is(patient, moved, options, granularity, source):
    card = ImplicitReward(moved, **{"reference": patient, **options}).card
    assert (card.expression, card.format, card.construction_basis) == ("implicit", "scalar", "data-driven")
    assert (card.granularity, card.source) == (granularity, source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be a finite number above 0"),
        ({"beta": float("nan")}, "beta must be a finite number above 0"),
        ({"granularity": "sentence"}, "granularity must be one of response, token"),
        ({"length": "median"}, "length must be one of sum, mean"),
    ],
)
def test_bad_options_are_named(patient, moved, options, message):
    with pytest.raises(AlignkitError, match=message):
        ImplicitReward(moved, patient, **options)


def test_a_reference_with_another_vocabulary_is_refused(patient, moved):
    with pytest.raises(AlignkitError, match="different vocabularies"):
        ImplicitReward(moved, make_policy(["a", "b"], seed=0, hidden=16, layers=1))


# -- in the tabular case ---------------------------------------------------------------------------------------------


def test_read_off_the_optimum_it_is_the_reward_up_to_a_constant_for_each_prompt():
    bandit = BanditWorld(seed=1)
    ref, true, beta = bandit.reference(), torch.from_numpy(bandit.table), 0.4
    rest = beta * (optimum(ref, true, beta) - ref) - true
    torch.testing.assert_close(rest, rest.mean(1, keepdim=True).expand_as(rest), atol=1e-12, rtol=0)
    assert rest.mean(1).std() > 0.01


def test_over_all_answers_it_averages_to_one_under_the_reference(toy):
    """E_ref[exp(r / beta)] = 1: summed over every first token, as both policies are distributions."""
    other = nudged(toy, by=0.3)
    words = ["a", "b", "c"]
    reward = ImplicitReward(other, toy, beta=0.5, granularity="token")
    tokens = [t[0] for t in reward(["a"] * 4, [*words, ""]).tokens]
    log_ref = [toy.logprobs(["a"], [text])[0][0, 0].item() for text in [*words, ""]]
    covered = np.exp(log_ref).sum()
    mean = (np.exp(log_ref) * np.exp(np.array(tokens) / 0.5)).sum()
    special = 1 - np.exp([other.logprobs(["a"], [t])[0][0, 0].item() for t in [*words, ""]]).sum()
    assert covered < 1 and mean + special == pytest.approx(1.0, abs=1e-4)


# -- trained, and used -----------------------------------------------------------------------------------------------


def test_after_dpo_it_orders_the_pairs_of_training(patient, pairs):
    treated = optimize.dpo(patient, pairs, learning_rate=1e-3, seed=0, progress=False)
    chosen, rejected = rewards.score_pairs(ImplicitReward(treated, patient), pairs)
    assert np.mean(chosen > rejected) > 0.75


def test_token_credit_lies_on_a_rollout_and_reaches_the_optimizer(world, patient, moved):
    prompts = world.prompts("treatment")[:2]
    reward = ImplicitReward(moved, patient, granularity="token")
    rollout = patient.rollout(prompts, 4, seed=2)
    said = reward(rollout.prompts, rollout.completions)
    laid = token_rewards(said, patient, rollout)
    assert torch.equal(laid.isnan(), rollout.batch.mask == 0)
    np.testing.assert_allclose(laid.nan_to_num().sum(1).numpy(), said.scores, atol=1e-4)
    options = {"steps": 1, "prompts_per_step": 2, "group_size": 4, "progress": False}
    finest, whole = (optimize.rloo(patient, prompts, reward, credit=c, **options) for c in ("finest", "response"))
    weights = [torch.cat([w.flatten() for w in p.model.parameters()]) for p in (finest, whole)]
    assert not torch.equal(*weights)


def test_a_completion_that_was_cut_off_gets_no_credit_for_an_end_it_did_not_reach(world, patient, moved):
    rollout = patient.rollout(world.prompts("treatment")[:4], 2, seed=2, max_new_tokens=5)
    assert not rollout.ended.all()
    said = ImplicitReward(moved, patient, granularity="token")(rollout.prompts, rollout.completions)
    laid = token_rewards(said, patient, rollout)
    row = int((~rollout.ended).nonzero()[0])
    np.testing.assert_allclose(laid[row, :5].numpy(), said.tokens[row][:5], atol=1e-6)
    too_many = Judgement(said.scores, tokens=[np.append(t, [0.0, 0.0]) for t in said.tokens])
    with pytest.raises(RewardError, match="token rewards do not fit"):
        token_rewards(too_many, patient, rollout)


# -- pairs that look alike -------------------------------------------------------------------------------------------


def test_ches_is_zero_for_equal_sides_and_does_not_depend_on_the_batch(world, patient, pairs):
    some = pairs.select(range(12))
    same = Dataset.from_dict({"prompt": some["prompt"][:], "chosen": some["chosen"][:], "rejected": some["chosen"][:]})
    np.testing.assert_allclose(optimize.ches(patient, same), 0.0, atol=1e-5)
    np.testing.assert_allclose(
        optimize.ches(patient, some, batch_size=5), optimize.ches(patient, some), rtol=1e-4, atol=1e-4
    )


def test_ches_is_larger_for_one_changed_word_than_for_another_answer(world, patient, pairs):
    some = pairs.select(range(40))
    near = Dataset.from_dict({"prompt": some["prompt"][:], "chosen": some["chosen"][:],
                              "rejected": [f"{text} of course ." for text in some["chosen"]]})  # fmt: skip
    assert optimize.ches(patient, near).mean() > optimize.ches(patient, some).mean()


def test_ches_needs_pairs(patient):
    with pytest.raises(DataError, match="need the columns"):
        optimize.ches(patient, Dataset.from_dict({"prompt": ["a"], "text": ["b"]}))
