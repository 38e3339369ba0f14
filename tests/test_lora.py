"""Adapters: a policy with a few trainable weights is a policy like any other."""

import sys

import pytest
import torch
from conftest import weights_of

from alignkit import optimize, rewards, training
from alignkit.errors import AlignkitError
from alignkit.optimize.experience import Critic
from alignkit.policy import load_policy

pytest.importorskip("peft")
ONLINE = {"prompts_per_step": 4, "group_size": 8, "learning_rate": 5e-3, "progress": False}


@pytest.fixture(scope="module")
def adapted(patient):
    return optimize.with_lora(patient)


@pytest.fixture(scope="module")
def gold(world):
    return rewards.GoldReward(world)


@pytest.fixture(scope="module")
def preferring(adapted, pairs):
    return optimize.dpo(adapted, pairs.select(range(128)), epochs=3, learning_rate=3e-3, progress=False)


@pytest.fixture(scope="module")
def rewarded(adapted, world, gold):
    return optimize.rloo(adapted, world.prompts("treatment"), gold, beta=0.05, steps=16, **ONLINE)


def split(policy):
    """Weights of the adapters, and all others."""
    named = dict(policy.model.named_parameters())
    return {n: p for n, p in named.items() if "lora_" in n}, {n: p for n, p in named.items() if "lora_" not in n}


def logprobs(policy, pairs):
    rows = pairs.select(range(16))
    return policy.logprobs(rows["prompt"][:] * 2, rows["chosen"][:] + rows["rejected"][:])[0]


def test_it_starts_as_the_policy_it_was_made_of(adapted, patient, pairs):
    torch.testing.assert_close(logprobs(adapted, pairs), logprobs(patient, pairs))
    assert adapted.sample(["what should i do to make tea ?"], 4, seed=2) == patient.sample(
        ["what should i do to make tea ?"], 4, seed=2
    )


def test_only_a_few_weights_are_to_be_trained(adapted):
    adapters, others = split(adapted)
    assert all(p.requires_grad for p in adapters.values())
    assert not any(p.requires_grad for p in others.values())
    assert 0 < sum(p.numel() for p in adapters.values()) < 0.2 * sum(p.numel() for p in others.values())


def test_rank_and_targets_say_how_many(patient):
    """By hand: on q and v of two layers, rank times (64 in + 64 out) each."""
    small = optimize.with_lora(patient, rank=2, targets=["q_proj", "v_proj"])
    assert sum(p.numel() for p in split(small)[0].values()) == 2 * 2 * 2 * (64 + 64)


@pytest.mark.parametrize("treated", ["preferring", "rewarded"])
def test_training_moves_the_adapters_alone(treated, adapted, patient, request):
    before, after = split(adapted), split(request.getfixturevalue(treated))
    assert any(not torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    # and the policy they were made of is a third one, untouched
    assert torch.equal(weights_of(load_policy("assistant")), weights_of(patient))


def test_the_reference_is_the_policy_without_adapters(preferring, rewarded):
    assert preferring.history["margin"][0] == pytest.approx(0, abs=1e-5)
    assert preferring.history["loss"][0] == pytest.approx(0.6931, abs=1e-4)
    assert rewarded.history["kl"][0] == pytest.approx(0, abs=1e-5)
    assert rewarded.history["kl"].iloc[-1] > 0.05


def test_dpo_raises_its_margin(preferring):
    first, last = preferring.history.iloc[:3].mean(), preferring.history.iloc[-3:].mean()
    assert last["margin"] > first["margin"] + 0.03
    assert last["loss"] < first["loss"]


def test_rloo_raises_its_reward(rewarded):
    reward = rewarded.history["reward"]
    assert reward[-5:].mean() > reward[:5].mean() + 0.15


def test_ppo_has_a_critic_beside_it(adapted, world, gold):
    treated = optimize.ppo(adapted, world.prompts("treatment"), gold, steps=3, critic_rate=1e-2, **ONLINE)
    assert treated.history["critic_error"].iloc[-1] < treated.history["critic_error"].iloc[0]
    assert any(not torch.equal(p, split(treated)[0][name]) for name, p in split(adapted)[0].items())


def test_the_critic_starts_at_zero_and_can_be_trained(adapted, pairs):
    critic = Critic(adapted)
    batch = adapted.encode(pairs["prompt"][:4], pairs["chosen"][:4])
    values = critic(batch)
    assert values.shape == batch.mask.shape and not values.any()
    (values - 1).pow(2).sum().backward()
    assert critic.head.bias.grad.abs() > 0


def test_saved_are_the_adapters_only(preferring, patient, pairs, tmp_path):
    folder = preferring.save(tmp_path / "adapters")
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    read = load_policy(folder)
    torch.testing.assert_close(logprobs(read, pairs), logprobs(preferring, pairs), atol=1e-5, rtol=1e-5)
    assert (logprobs(read, pairs) - logprobs(patient, pairs)).abs().max() > 0.01


def storages(policy):
    """Where the frozen weights lie in memory."""
    return {p.data_ptr() for p in policy.model.parameters() if not p.requires_grad}


def test_one_base_is_held_for_the_policy_its_adapters_their_copies_and_what_they_become(adapted, preferring, patient):
    base = {p.data_ptr() for p in patient.model.parameters()}
    assert storages(adapted) == storages(adapted.copy()) == storages(preferring) == base
    assert all(p.requires_grad for p in patient.model.parameters())  # it may still be trained itself
    other = adapted.copy()
    for policy in (adapted, preferring):
        mine, others = ({p.data_ptr() for p in split(side)[0].values()} for side in (policy, other))
        assert not mine & others


def test_the_base_under_trained_adapters_is_still_the_reference(preferring, patient, pairs):
    with preferring.model.disable_adapter():
        torch.testing.assert_close(logprobs(preferring, pairs), logprobs(patient, pairs))


def test_a_saved_adapter_is_trained_on(preferring, pairs, tmp_path):
    read = load_policy(preferring.save(tmp_path / "adapters"))
    few = {"epochs": 1, "learning_rate": 3e-3, "progress": False}
    on, straight = (optimize.dpo(policy, pairs.select(range(64)), **few) for policy in (read, preferring))
    for name, weight in split(on)[0].items():
        torch.testing.assert_close(weight, split(straight)[0][name], atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(w, split(preferring)[0][name]) for name, w in split(on)[0].items())
    assert all(torch.equal(w, split(preferring)[1][name]) for name, w in split(on)[1].items())
    with pytest.raises(AlignkitError, match="has adapters already"):  # and not thrown away
        optimize.with_lora(read)


def test_merged_it_is_a_plain_policy_that_says_the_same(preferring, patient, pairs, tmp_path):
    plain = optimize.merged(preferring)
    assert not plain.has_adapters and all(p.requires_grad for p in plain.model.parameters())
    torch.testing.assert_close(logprobs(plain, pairs), logprobs(preferring, pairs), atol=1e-5, rtol=1e-5)
    assert preferring.has_adapters and torch.equal(weights_of(load_policy("assistant")), weights_of(patient))
    read = load_policy(plain.save(tmp_path / "plain"))
    torch.testing.assert_close(logprobs(read, pairs), logprobs(plain, pairs))
    again = optimize.with_lora(plain)
    torch.testing.assert_close(logprobs(again, pairs), logprobs(plain, pairs))
    with pytest.raises(AlignkitError, match="no adapters"):
        optimize.merged(plain)


def test_a_soup_of_adapters_leaves_the_base_alone(adapted, preferring, patient, pairs):
    half = optimize.soup([adapted, preferring])
    assert storages(half) == storages(adapted)
    assert torch.equal(weights_of(load_policy("assistant")), weights_of(patient))
    for name, weight in split(half)[0].items():
        torch.testing.assert_close(weight, (split(adapted)[0][name] + split(preferring)[0][name]) / 2)


def test_frozen_weights_stay_frozen_without_adapters_too(patient, pairs):
    part = patient.copy()
    part.model.requires_grad_(False)
    with pytest.raises(AlignkitError, match="all weights are frozen"):
        optimize.dpo(part, pairs.select(range(8)), progress=False)
    part.model.model.layers[1].requires_grad_(True)
    treated = optimize.dpo(part, pairs.select(range(32)), learning_rate=1e-2, progress=False)
    for name, weight in treated.model.named_parameters():
        assert torch.equal(weight, part.model.get_parameter(name)) != ("layers.1." in name), name


def test_a_checkpoint_goes_on_where_it_was(adapted, pairs, tmp_path, monkeypatch):
    few, options = pairs.select(range(64)), {"epochs": 2, "learning_rate": 3e-3, "progress": False}
    whole = optimize.dpo(adapted, few, **options)
    path, clip, calls = tmp_path / "dpo.pt", torch.nn.utils.clip_grad_norm_, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return clip(*args)

    monkeypatch.setattr(training, "EVERY", 1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
        optimize.dpo(adapted, few, checkpoint=path, **options)
    trained = sum(p.numel() for p in split(adapted)[0].values())
    assert path.stat().st_size < 4 * 3 * trained + 60_000  # they and Adam's two moments, and no base
    resumed = optimize.dpo(adapted, few, checkpoint=path, **options)
    assert len(resumed.history) == len(whole.history) == 4
    for name, weight in split(whole)[0].items():
        torch.testing.assert_close(weight, split(resumed)[0][name])


def test_bad_input(patient, adapted):
    with pytest.raises(AlignkitError, match="rank must be at least 1, not 0"):
        optimize.with_lora(patient, rank=0)
    with pytest.raises(AlignkitError, match="nowhere"):
        optimize.with_lora(patient, targets=["nowhere"])
    with pytest.raises(AlignkitError, match="has adapters already"):
        optimize.with_lora(adapted)


def test_without_peft(patient, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AlignkitError, match=r"pip install 'alignkit\[lora\]'"):
        optimize.with_lora(patient)
