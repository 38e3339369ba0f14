"""The methods of policy gradient: each is an advantage and a few switches of one loss and one loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

from datasets import Dataset
from torch import Tensor

from alignkit.optimize.advantages import (
    batch_leave_one_out,
    gae,
    group_centered,
    group_normalized,
    leave_one_out,
    reward_to_go,
    whitened,
)
from alignkit.optimize.config import AdaptiveKL, Method
from alignkit.optimize.experience import Experience, judged
from alignkit.optimize.rl import policy_gradient
from alignkit.policy import Policy
from alignkit.rewards.base import Reward
from alignkit.rewards.objectives import Decoupled, Parts

#: Every method by name: what is different from the defaults of `Method` stands above its advantage.
METHODS: dict[str, Method] = {}


def by_gradient(**switches) -> Callable[[Callable[[Experience, float], Tensor]], Callable[..., Policy]]:
    """Make an advantage, with these fields of `Method`, a treatment, and note the method in `METHODS`.

    It is called as treatment(policy, prompts, reward, beta=..., **options), options as in `policy_gradient`.
    """

    def treatment_of(advantages: Callable[[Experience, float], Tensor]) -> Callable[..., Policy]:
        method = Method(advantages.__name__.replace("_plus", "+"), advantages, **switches)
        METHODS[method.name] = method

        def treatment(policy: Policy, prompts: list | Dataset, reward: Reward | Callable,
                      beta: float | AdaptiveKL = method.beta, **options) -> Policy:  # fmt: skip
            return policy_gradient(policy, prompts, reward, method, beta=beta, **options)

        treatment.__name__ = treatment.__qualname__ = advantages.__name__
        treatment.__doc__ = f"{inspect.getdoc(advantages)}\n\nOptions: see `policy_gradient` and `Method`."
        return treatment

    return treatment_of


@by_gradient(ratio="completion")
def reinforce(e: Experience, beta: float) -> Tensor:
    """REINFORCE (Williams 1992) with the mean of all other completions of the batch as its baseline.

    One action a completion, KL in the reward.
    """
    total, there = e.rewards.nan_to_num().sum(1) - beta * e.kl.sum(1), judged(e.mask)
    total[there] = batch_leave_one_out(total[there])
    return total[:, None] * e.mask


@by_gradient(ratio="completion")
def rloo(e: Experience, beta: float) -> Tensor:
    """REINFORCE with the leave-one-out baseline (2402.14740).

    The KL to `policy` is part of the reward: r - beta * log(pi / ref) of the whole completion (k1). The completion is
    one action. With dense rewards (not in the paper) each token is one, and its advantage is the reward-to-go against
    that of the others. From the second update on the same samples on, the ratio of the completion is clipped, as in
    TRL; the paper makes one update.
    """
    gained = e.in_groups(leave_one_out, e.rewards)
    return gained - beta * e.in_groups(leave_one_out, e.penalty) if beta else gained  # the KL: a reward of its own


@by_gradient(ratio="completion", greedy=True)
def remax(e: Experience, beta: float) -> Tensor:
    """REINFORCE with the reward of the greedy completion as its baseline (ReMax, 2310.10505); group_size may be 1.

    The baseline ignores the KL, whose mean stays in the advantage: unbiased, but noisier than a baseline of both.
    """
    to_go = reward_to_go(e.rewards.nan_to_num() - beta * e.penalty.nan_to_num())
    return (to_go - e.greedy.repeat_interleave(e.group_size)[:, None]) * e.mask


@by_gradient(loss_type="batch")
def reinforce_plus_plus(e: Experience, beta: float) -> Tensor:
    """Reward-to-go with the KL at every token, normalized over the batch, clipped (REINFORCE++, 2501.03262)."""
    return whitened(reward_to_go((e.rewards.nan_to_num() - beta * e.kl) * e.mask), e.mask)


@by_gradient(loss_type="batch", critic=True, whiten=True, minibatches=4)
def ppo(e: Experience, beta: float) -> Tensor:
    """Proximal policy optimization (1707.06347) with a critic, GAE, and the KL in the reward (1909.08593).

    Four minibatches a batch by default, so that clipping acts; advantages are whitened over the batch. Common
    implementations (2403.17031) also clip the critic's values and take a constant off the reward of completions without
    an end; neither is done here. The critic is a copy of the policy, not of the reward model.
    """
    return gae(e.rewards.nan_to_num() - beta * e.kl, e.values, e.mask)


@by_gradient(kl="loss")
def grpo(e: Experience, beta: float) -> Tensor:
    """Group relative policy optimization (2402.03300, eq. 3).

    Advantages are normalized by the group's standard deviation; the KL to `policy` is part of the loss (k3 at each
    token); each completion's token losses are averaged over its length, as in the paper. Dense rewards make it the
    paper's variant with process supervision. TRL differs by default: no KL and the loss of DAPO; and with a KL, k3
    times the importance ratio, whose gradient is that of KL(pi || ref) (2512.02556), where the paper's k3, as here,
    pulls like KL(ref || pi).
    """
    return e.in_groups(group_normalized, e.paid(beta))


@by_gradient(kl="loss", loss_type="limit")
def dr_grpo(e: Experience, beta: float) -> Tensor:
    """GRPO without the two divisions said to bias it, by the group's deviation and by the length (2503.20783).

    A completion's sum over tokens is divided by the constant `max_new_tokens`. The paper has no KL (beta=0); here it
    has that of the other methods, to be compared with them.
    """
    return e.in_groups(group_centered, e.paid(beta))


@by_gradient(kl="loss", loss_type="batch", clip_high=0.28, filter=True, beta=0.0)
def dapo(e: Experience, beta: float) -> Tensor:
    """GRPO with a token-level loss, a higher upper clip and no groups of equal rewards (2503.14476).

    As in the paper there is no KL by default. `draws` > 1 samples again to replace the groups that were left out. The
    paper leaves out groups that are all right or all wrong; here, where rewards need not be 0 or 1, those of any equal
    rewards. Its penalty for overlong completions is not part of this method: make it part of the reward.
    """
    return e.in_groups(group_normalized, e.paid(beta))


@by_gradient(kl="loss", ratio="sequence", clip=3e-4, clip_high=4e-4)
def gspo(e: Experience, beta: float) -> Tensor:
    """GRPO with one importance ratio a completion, normalized by its length, and a tight clip (2507.18071).

    The paper's objective has no KL (beta=0).
    """
    return e.in_groups(group_normalized, e.paid(beta))


def gdpo(
    policy: Policy,
    prompts: list,
    parts: Parts,
    weights: Mapping[str, float] | None = None,
    beta: float | AdaptiveKL = 0.2,
    whiten: bool = True,
    **options,
) -> Policy:
    """GRPO for several rewards, each normalized in its group before they are summed (2601.05242).

    `parts`: a reward with aspects, or {name: reward}; `weights`: default 1 each; `whiten`: divide by the batch's
    standard deviation. With one reward and no `whiten` it is `grpo`. Options: see `policy_gradient`.
    """
    method = replace(METHODS["dr_grpo"], name="gdpo", loss_type="completion")  # GRPO, but its advantages only centered
    return policy_gradient(policy, prompts, Decoupled(parts, weights, whiten), method, beta=beta, **options)
