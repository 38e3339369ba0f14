"""Each treatment raises what it should, leaves its reference alone, and does exactly what its seed says."""

import numpy as np
import pytest
import torch
from conftest import finite_differences, mean_gold, weights_of
from datasets import Dataset
from torch.autograd import gradcheck

from alignkit import feedback, optimize, rewards
from alignkit.errors import AlignkitError
from alignkit.optimize import (
    clipped_surrogate,
    dpo_loss,
    group_normalized,
    grpo,
    kl_estimate,
    leave_one_out,
    rloo,
)

BOTH = pytest.mark.parametrize("method", [rloo, grpo], ids=["rloo", "grpo"])
GRADIENT_COLUMNS = ["step", "reward", "tokens", "zero_variance", "kl", "entropy", "clip_fraction", "beta"]


def doubles(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def thanks(prompts, completions):
    return [float("thank you" in c) for c in completions]


def constant(prompts, completions):
    return [0.1] * len(completions)


@pytest.fixture(scope="module")
def ideals(world):
    prompts = world.prompts("treatment")
    return Dataset.from_dict({"prompt": prompts, "completion": [world.ideal(p) for p in prompts]})


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (lambda a, b, c, d: dpo_loss(a, b, c, d, 0.3), [doubles(5, seed=s) for s in range(4)]),
        (lambda a, b: kl_estimate(a, b, "k1"), [doubles(5), doubles(5, seed=1)]),
        (lambda a, b: kl_estimate(a, b, "k2"), [doubles(5), doubles(5, seed=1)]),
        (lambda a, b: kl_estimate(a, b, "k3"), [doubles(5), doubles(5, seed=1)]),
        (lambda a, b, c: clipped_surrogate(a, b, c, 0.2), [doubles(5, seed=s) for s in range(3)]),
    ],
    ids=["dpo", "k1", "k2", "k3", "clipped"],
)
def test_gradients_are_those_of_the_loss(loss, inputs):
    assert gradcheck(loss, tuple(inputs))
    for k, x in enumerate(inputs):
        (slope,) = torch.autograd.grad(loss(*inputs).sum(), x)
        numeric = finite_differences(lambda y, k=k: loss(*inputs[:k], y, *inputs[k + 1 :]).detach(), x.detach())
        torch.testing.assert_close(slope, numeric, atol=1e-7, rtol=1e-6)


def test_dpo_looks_at_the_difference_of_log_ratios_only():
    a, b, ra, rb = (doubles(5, seed=s).detach() for s in range(4))
    loss = dpo_loss(a, b, ra, rb, 0.3)
    torch.testing.assert_close(loss, rewards.bradley_terry_loss(0.3 * (a - ra), 0.3 * (b - rb)))
    torch.testing.assert_close(dpo_loss(a + 2, b + 2, ra, rb, 0.3), loss)
    torch.testing.assert_close(dpo_loss(ra, rb, ra, rb, 0.3), torch.full((5,), np.log(2)).double())
    torch.testing.assert_close(torch.exp(-loss) + torch.exp(-dpo_loss(b, a, rb, ra, 0.3)), torch.ones(5).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_ratios_do_not_overflow_dpo(dtype):
    far, zero = torch.tensor([-1e4], dtype=dtype, requires_grad=True), torch.zeros(1, dtype=dtype)
    loss = dpo_loss(far, zero, zero, zero, 1.0)
    assert loss.item() == pytest.approx(1e4) and torch.autograd.grad(loss, far)[0].item() == -1


def test_kl_estimators_are_zero_for_equal_policies_and_named_otherwise():
    logp = doubles(5).detach()
    for kind in ("k1", "k2", "k3"):
        assert (kl_estimate(logp, logp, kind) == 0).all()
    with pytest.raises(ValueError, match="kind must be one of k1, k2, k3, not 'k4'"):
        kl_estimate(logp, logp, "k4")


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),  # on policy: REINFORCE
        (1.1, 2.0, 2.2, 2.2),
        (1.5, 2.0, 2.4, 0.0),  # good and already likelier: no more
        (1.5, -2.0, -3.0, -3.0),  # bad and likelier: pushed back in full
        (0.5, 2.0, 1.0, 1.0),
        (0.5, -2.0, -1.6, 0.0),
    ],
)
def test_clipping_stops_what_has_moved_far_enough(ratio, advantage, value, slope):
    logp = torch.tensor([np.log(ratio)], requires_grad=True)
    gain = clipped_surrogate(logp, torch.zeros(1).double(), torch.tensor([advantage]).double(), 0.2)
    assert gain.item() == pytest.approx(value)
    assert torch.autograd.grad(gain, logp)[0].item() == pytest.approx(slope)


# -- advantages ------------------------------------------------------------------------------------


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    r = doubles(3, 5).detach()
    others = torch.stack([r[:, [j for j in range(5) if j != i]].mean(1) for i in range(5)], 1)
    torch.testing.assert_close(leave_one_out(r), r - others)
    torch.testing.assert_close(leave_one_out(r), 5 / 4 * (r - r.mean(1, keepdim=True)))


def test_group_normalized_ignores_scale_and_shift():
    r = doubles(3, 5).detach()
    advantage = group_normalized(r, eps=0)
    torch.testing.assert_close(advantage, group_normalized(7 * r + 3, eps=0))
    torch.testing.assert_close(advantage.std(1), torch.ones(3).double())
    torch.testing.assert_close(advantage.mean(1), torch.zeros(3).double())


@pytest.mark.parametrize("advantages_of", [leave_one_out, group_normalized])
@pytest.mark.parametrize("k", [2, 3, 7, 8, 16])
def test_a_group_of_equal_rewards_gives_exactly_zero(advantages_of, k):
    assert (advantages_of(torch.full((2, k), 0.1)) == 0).all()  # 0.1 has no exact mean in single precision
    mixed = torch.full((2, k), 0.1)
    mixed[1, 0] = 1.0
    assert (advantages_of(mixed)[0] == 0).all() and (advantages_of(mixed)[1] != 0).all()


@pytest.mark.parametrize("advantages_of", [leave_one_out, group_normalized])
@pytest.mark.parametrize("shape", [(3, 1), (3,), (2, 1, 2)])
def test_groups_of_one_have_no_advantage(advantages_of, shape):
    with pytest.raises(AlignkitError, match="group >= 2.*group_size"):
        advantages_of(torch.zeros(shape))


DPO = {"beta": 0.1, "epochs": 2, "batch_size": 32, "learning_rate": 1e-3, "progress": False}

# -- learning from fixed data ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_data(patient, ideals, pairs):
    """Weights of the patient before, and the policies treated by SFT and DPO."""
    before = weights_of(patient)
    treated = {
        "sft": optimize.sft(patient, ideals, epochs=5, batch_size=32, learning_rate=1e-3),
        "dpo": optimize.dpo(patient, pairs, **DPO),
    }
    return before, treated


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_learning_from_data_raises_gold_and_leaves_the_reference(world, patient, by_data, name):
    before, treated = by_data
    assert mean_gold(world, treated[name], "seen") > mean_gold(world, patient, "seen") + 0.4
    assert torch.equal(weights_of(patient), before)
    assert treated[name].name == f"assistant-0 + {name}" and patient.history is None and not patient.spent


def test_history_and_spending_of_learning_from_data(by_data, ideals, pairs):
    sft, dpo = by_data[1]["sft"], by_data[1]["dpo"]
    assert list(sft.history) == ["step", "loss", "grad_norm"]
    assert list(dpo.history) == ["step", "loss", "accuracy", "margin", "chosen_log_ratio", "rejected_log_ratio",
                                 "grad_norm"]  # fmt: skip
    for policy, steps in ((sft, round(5 * len(ideals) / 32)), (dpo, 2 * len(pairs) // 32)):
        assert policy.history["step"].tolist() == list(range(steps))
        assert policy.spent["updates"] == steps and policy.spent["rows_read"] == 32 * steps
        assert policy.spent["seconds"] > 0
    assert sft.history["loss"][-3:].mean() < sft.history["loss"][:3].mean()
    first, last = dpo.history.iloc[0], dpo.history.iloc[-1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-3) and first["margin"] == pytest.approx(0, abs=1e-3)
    assert last["loss"] < 0.6 and last["accuracy"] > 0.6
    gap = 0.1 * (last["chosen_log_ratio"] - last["rejected_log_ratio"])
    assert last["margin"] == pytest.approx(gap, abs=1e-4) and gap > 0


def test_sft_loss_is_the_mean_over_completion_tokens(patient, ideals):
    data = ideals.select(range(8))
    logp, mask = patient.logprobs(data["prompt"][:], data["completion"][:])
    history = optimize.sft(patient, data, epochs=1, batch_size=8).history
    assert history["loss"][0] == pytest.approx((-logp.sum() / mask.sum()).item(), abs=1e-5)


def test_a_smaller_beta_moves_farther(patient, pairs):
    some = pairs.select(range(96))
    gaps = []
    for beta in (5.0, 0.05):
        history = optimize.dpo(patient, some, **DPO | {"beta": beta, "epochs": 4}).history[-3:]
        gaps.append((history["chosen_log_ratio"] - history["rejected_log_ratio"]).mean())
    assert gaps[1] > 1.3 * gaps[0] > 0


def test_summed_logprobs_do_not_depend_on_batch_size(patient, pairs):
    batch = patient.encode(pairs["prompt"][:40], pairs["chosen"][:40])
    sums = optimize.summed_logprobs(patient, batch, batch_size=7)
    torch.testing.assert_close(sums, patient.logprobs(pairs["prompt"][:40], pairs["chosen"][:40])[0].sum(1))


@pytest.mark.parametrize("beta", [0, -0.1, float("nan")])
def test_dpo_without_a_penalty_is_refused(tiny, pairs, beta):
    with pytest.raises(AlignkitError, match="beta must be a finite number above 0"):
        optimize.dpo(tiny, pairs, beta=beta)


# -- learning from rewards of fresh samples --------------------------------------------------------

SHORT_RUN = {
    "steps": 12,
    "prompts_per_step": 8,
    "group_size": 8,
    "beta": 0.05,
    "learning_rate": 2e-3,
    "progress": False,
}


@pytest.fixture(scope="module", params=[rloo, grpo], ids=["rloo", "grpo"])
def thankful(request, world, patient):
    """The weights before, the treated policy, and the prompts and completions the reward saw."""
    before, seen = weights_of(patient), []

    def reward(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return thanks(prompts, completions)

    return before, request.param(patient, world.prompts("treatment"), reward, **SHORT_RUN), seen


def test_the_reward_rises_and_the_reference_stays(world, patient, thankful):
    before, treated, _ = thankful
    prompts = world.prompts("seen")
    rate = [np.mean(thanks(None, p.rollout(prompts, 2, seed=1).completions)) for p in (patient, treated)]
    assert rate[0] < 0.25 and rate[1] > 0.6
    assert torch.equal(weights_of(patient), before)


def test_history_has_one_row_a_step(world, thankful):
    _, treated, seen = thankful
    history = treated.history
    assert list(history) == GRADIENT_COLUMNS and history["step"].tolist() == list(range(12))
    by_step = np.array(thanks(None, [c for _, c in seen])).reshape(12, 64)
    np.testing.assert_allclose(history["reward"], by_step.mean(1), atol=1e-6)
    equal = [np.mean([len(set(g)) == 1 for g in step.reshape(8, 8)]) for step in by_step]
    np.testing.assert_allclose(history["zero_variance"], equal, atol=1e-6)
    assert history["kl"][0] == pytest.approx(0, abs=1e-4) and history["kl"].iloc[-1] > 0.3
    assert history["tokens"].between(1, 48).all()


def test_spending_is_what_was_spent(world, thankful):
    _, treated, seen = thankful
    assert treated.spent["completions_sampled"] == len(seen) == 12 * 8 * 8
    assert treated.spent["updates"] == 12 and treated.spent["seconds"] > 0
    assert treated.spent["backward_rows"] == len(seen) and treated.spent["forward_rows"] == 2 * len(seen)
    asked = [seen[i][0] for i in range(0, len(seen), 8)]
    assert len(set(asked)) == len(asked) == 96 and set(asked) <= set(world.prompts("treatment"))


@BOTH
def test_gold_as_the_reward_raises_gold_and_noise_does_not(world, patient, method):
    before, options = mean_gold(world, patient), SHORT_RUN | {"steps": 9}
    treated = method(patient, world.prompts(), rewards.GoldReward(world), **options)
    null = method(patient, world.prompts(), rewards.RandomReward(1), **options)
    assert mean_gold(world, treated) > before + 0.4
    assert before - 1 < mean_gold(world, null) < before + 0.25


@BOTH
def test_a_larger_beta_stays_closer(world, patient, method):
    options = SHORT_RUN | {"steps": 6}
    near, far = (
        method(patient, world.prompts(), thanks, **options | {"beta": b}).history["kl"].iloc[-1] for b in (2.0, 0.0)
    )
    assert near < 0.5 * far


@BOTH
def test_seeds_reproduce_exactly(patient, world, method):
    def run(seed):
        return method(patient, world.prompts(), thanks, steps=2, prompts_per_step=4, group_size=4, seed=seed)

    first, same, other = run(3), run(3), run(4)
    assert torch.equal(weights_of(first), weights_of(same)) and first.history.equals(same.history)
    assert not torch.equal(weights_of(first), weights_of(other))


def test_seeds_of_learning_from_data_reproduce_exactly(tiny, pairs, ideals):
    for run in (
        lambda seed: optimize.dpo(tiny, pairs.select(range(64)), seed=seed),
        lambda seed: optimize.sft(tiny, ideals, seed=seed),
    ):
        first, same, other = (weights_of(run(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, same) and not torch.equal(first, other)


@BOTH
def test_clipping_acts_from_the_second_update_on_the_same_samples(patient, world, method):
    options = {"steps": 3, "prompts_per_step": 4, "learning_rate": 5e-3}
    once = method(patient, world.prompts(), thanks, **options)
    assert (once.history["clip_fraction"] == 0).all() and once.spent["updates"] == 3
    often = method(patient, world.prompts(), thanks, epochs=2, minibatches=4, **options)
    assert often.history["clip_fraction"].max() > 0 and often.spent["updates"] == 3 * 2 * 4


@BOTH
def test_a_narrow_clip_holds_the_policy_back(patient, world, method):
    options = {"steps": 1, "prompts_per_step": 4, "epochs": 12, "beta": 0.0, "learning_rate": 1e-3}
    narrow, wide = (
        (weights_of(method(patient, world.prompts(), thanks, clip=c, **options)) - weights_of(patient)).norm()
        for c in (0.01, 10.0)
    )
    assert 0 < narrow < wide


@BOTH
@pytest.mark.parametrize("group_size", [7, 8])
def test_groups_without_differences_change_nothing(patient, world, method, group_size):
    treated = method(patient, world.prompts(), constant, beta=0.0, steps=2, prompts_per_step=2, group_size=group_size)
    assert torch.equal(weights_of(treated), weights_of(patient))
    assert (treated.history["zero_variance"] == 1).all()


def test_the_first_updates_of_both_methods_follow_their_equations(patient, world):
    """One step on fresh samples is REINFORCE with the method's advantage and weight of length."""
    prompts, seen = world.prompts()[:2], []
    for method, advantage_of in ((rloo, leave_one_out), (grpo, group_normalized)):
        seen.clear()

        def reward(asked, completions, seen=seen):
            seen.append((asked, completions))
            return [float(len(c.split())) for c in completions]

        treated = method(patient, prompts, reward, steps=1, prompts_per_step=2, group_size=4, learning_rate=1e-4)
        asked, completions = seen[0]
        other = patient.copy()
        batch = other.encode(asked, completions)
        logp = other.token_logprobs(batch)
        advantage = advantage_of(torch.tensor([float(len(c.split())) for c in completions]).view(2, 4)).flatten()
        weight = 1 if method is rloo else 1 / batch.mask.sum(1)
        (-(advantage * weight * logp.sum(1)).mean()).backward()
        for mine, theirs, start in zip(
            other.model.parameters(), treated.model.parameters(), patient.model.parameters(), strict=True
        ):
            step = (theirs - start).detach()  # the first step of Adam is the sign of the gradient
            clear = mine.grad.abs() > 1e-4
            assert (torch.sign(step) == -torch.sign(mine.grad))[clear].float().mean() > 0.99


@BOTH
@pytest.mark.parametrize("options", [{"prompts": []}, {"steps": 0}])
def test_nothing_to_learn_from_is_an_error(tiny, method, options):
    with pytest.raises(AlignkitError, match="the number of prompts must be at least 1|steps must be at least 1"):
        method(**{"policy": tiny, "prompts": ["please explain iron ?"], "reward": thanks, **options})


@BOTH
def test_a_group_of_one_is_an_error(tiny, method):
    with pytest.raises(AlignkitError, match=r"group >= 2.*\(group_size\)"):
        method(tiny, ["please explain iron ?"], thanks, group_size=1, steps=1)


# -- best of n -------------------------------------------------------------------------------------


def length(prompts, completions):
    return [float(len(c.split())) for c in completions]


def test_best_of_one_is_a_sample_and_more_raise_the_reward(patient, world):
    prompts = world.prompts("seen")
    one = optimize.best_of_n(patient, prompts, length, 1, seed=3)
    assert one == [t[0] for t in patient.sample(prompts, 1, seed=3)]
    means = [np.mean(length(None, optimize.best_of_n(patient, prompts, length, n, seed=3))) for n in (1, 4, 16)]
    assert means[0] + 3 < means[1] < means[2] - 3


def test_best_of_n_returns_the_best_of_its_samples(patient, world):
    prompts = world.prompts("seen")[:10]
    samples = patient.sample(prompts, 6, seed=2)
    best = optimize.best_of_n(patient, prompts, length, 6, seed=2)
    assert length(None, best) == [max(length(None, s)) for s in samples]
    assert all(b in s for b, s in zip(best, samples, strict=True))


def test_best_of_n_raises_gold_when_gold_chooses(patient, world):
    prompts = world.prompts("test")
    best = optimize.best_of_n(patient, prompts, rewards.GoldReward(world), 16)
    assert world.gold(prompts, best).mean() > mean_gold(world, patient, "test") + 1


def test_ties_go_to_any_of_the_best(patient, world):
    prompts = world.prompts("seen")[:40]
    samples = patient.sample(prompts, 4, seed=1)
    chosen = optimize.best_of_n(patient, prompts, constant, 4, seed=1)
    places = [s.index(c) for s, c in zip(samples, chosen, strict=True)]
    assert set(places) == {0, 1, 2, 3}
    assert chosen == optimize.best_of_n(patient, prompts, constant, 4, seed=1)


@pytest.mark.parametrize(("prompts", "n"), [(["please explain iron ?"], 0), ([], 2)])
def test_best_of_nothing_is_an_error(tiny, prompts, n):
    with pytest.raises(AlignkitError, match="at least 1"):
        optimize.best_of_n(tiny, prompts, thanks, n)


@pytest.mark.slow
def test_a_learned_reward_improves_the_patient_end_to_end(world, patient, pairs):
    """The whole story: diagnose, prescribe, treat, follow up."""
    reward = rewards.BradleyTerry.fit(pairs, patient, epochs=3, learning_rate=3e-3, progress=False)
    treated = optimize.grpo(patient, world.prompts(), reward, **SHORT_RUN)
    assert treated.history["reward"].iloc[-1] > treated.history["reward"].iloc[0] + 0.3
    assert mean_gold(world, treated, "test") > mean_gold(world, patient, "test") + 0.1
    assert feedback.gold_agreement(world, pairs) > 0.95
