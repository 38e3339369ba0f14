"""Regression of log-ratios on rewards: where it vanishes, what its gradient is, and that it treats."""

import pytest
import torch
from conftest import finite_differences, mean_gold, weights_of

from alignkit import optimize
from alignkit.errors import AlignkitError
from alignkit.policy import Policy

PROMPTS = [f"please explain {what} ?" for what in ("iron", "glass", "rice", "salt", "tea", "ash")]
SMALL = dict(steps=12, prompts_per_step=8, group_size=4, learning_rate=1e-3, progress=False)


def random_groups(n=20, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, k, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_it_vanishes_at_the_optimum_and_only_there():
    logp, ref, reward = random_groups()
    best = ref + reward / 0.3 + torch.arange(20.0, dtype=torch.float64)[:, None]  # log Z differs from prompt to prompt
    assert torch.allclose(optimize.regression_loss(best, ref, reward, 0.3), torch.zeros(20, dtype=torch.float64))
    assert (optimize.regression_loss(logp, ref, reward, 0.3) > 0).all()


def test_it_is_half_the_mean_square_over_pairs():
    logp, ref, reward = random_groups(k=3)
    miss = 0.3 * (logp - ref) - reward
    squares = (miss[:, :, None] - miss[:, None, :]).pow(2).mean((1, 2)) / 2
    assert torch.allclose(optimize.regression_loss(logp, ref, reward, 0.3), squares)


def test_its_gradient_is_that_of_rloo_with_the_kl_in_the_reward():
    logp, ref, reward = random_groups()
    logp.requires_grad_()
    (slope,) = torch.autograd.grad(optimize.regression_loss(logp, ref, reward, 0.3).sum(), logp)
    advantage = optimize.leave_one_out(reward - 0.3 * (logp - ref).detach())
    assert torch.allclose(slope, -2 * 0.3 * (3 / 4) * advantage / 4)
    slow = finite_differences(lambda x: optimize.regression_loss(x, ref, reward, 0.3), logp.detach().clone())
    assert torch.allclose(slope, slow, atol=1e-6)


def test_it_raises_gold_and_the_same_seed_gives_the_same(world, patient):
    def gold(prompts, completions):
        return world.gold(prompts, completions)

    treated = optimize.reward_regression(patient, world.prompts(), gold, beta=0.3, seed=3, **SMALL)
    again = optimize.reward_regression(patient, world.prompts(), gold, beta=0.3, seed=3, **SMALL)
    assert torch.equal(weights_of(treated), weights_of(again))
    assert mean_gold(world, treated) > mean_gold(world, patient) + 0.2
    assert treated.spent["completions_sampled"] == 12 * 8 * 4 == treated.spent["backward_rows"]
    assert {"kl", "reward", "loss"} <= set(treated.history)


def test_a_reward_that_never_differs_leaves_the_policy_alone(world, patient):
    treated = optimize.reward_regression(patient, world.prompts(), lambda p, c: [1.0] * len(c), steps=1,
                                         prompts_per_step=2, group_size=2, progress=False)  # fmt: skip
    assert treated.history["loss"].iloc[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"beta": 0.0}, "beta must be a finite number"), ({"group_size": 1}, "at least 2"), ({"steps": 0}, "at least 1")],
)
def test_bad_input_is_named(world, patient, wrong, message):
    with pytest.raises(AlignkitError, match=message):
        optimize.reward_regression(patient, world.prompts(), lambda p, c: [0.0] * len(c), **{**SMALL, **wrong})
    with pytest.raises(AlignkitError, match="the number of prompts must be at least 1"):
        optimize.reward_regression(patient, [], lambda p, c: [0.0] * len(c), **SMALL)


def test_groups_of_one_are_refused():
    with pytest.raises(AlignkitError, match="at least 2"):
        optimize.regression_loss(*[torch.zeros(3, 1)] * 3, 0.2)


def test_losses_on_fresh_samples_ask_in_turn_and_draw_anew_at_every_step(tiny, monkeypatch):
    seen, rollout = [], Policy.rollout

    def spied(self, prompts, n, seed, **options):
        seen.append((prompts, seed))
        return rollout(self, prompts, n, seed, **options)

    monkeypatch.setattr(Policy, "rollout", spied)
    prompts, few = PROMPTS[:6], dict(steps=6, prompts_per_step=4, learning_rate=1e-6, max_new_tokens=4, progress=False)
    optimize.reward_regression(tiny, prompts, lambda p, c: [float(len(x)) for x in c], seed=1, **few)
    asked = [prompt for some, _ in seen for prompt in some]
    assert all(asked.count(prompt) == 4 for prompt in prompts)
    assert len({seed for _, seed in seen}) == len(seen) == 6
    first = {seed for _, seed in seen}
    seen.clear()
    optimize.reward_regression(tiny, prompts, lambda p, c: [float(len(x)) for x in c], seed=2, **few)
    assert first.isdisjoint({seed for _, seed in seen})
