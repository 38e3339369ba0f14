"""The methods of policy gradient: each is an advantage and a few switches of one loss and one loop."""

from __future__ import annotations

from collections.abc import Callable

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

Prompts = list | Dataset
Beta = float | AdaptiveKL


def _against_the_batch(e: Experience, beta: float) -> Tensor:
    total, there = e.rewards.nan_to_num().sum(1) - beta * e.kl.sum(1), judged(e.mask)
    total[there] = batch_leave_one_out(total[there])
    return total[:, None] * e.mask


def _against_the_others(e: Experience, beta: float) -> Tensor:
    mask = e.grouped(e.mask)
    gained = leave_one_out(e.grouped(e.rewards), mask)
    if beta:  # the same for the KL as a reward of its own
        gained = gained - beta * leave_one_out(e.grouped(e.penalty), mask)
    return gained.flatten(0, 1)


def _against_the_greedy(e: Experience, beta: float) -> Tensor:
    to_go = reward_to_go(e.rewards.nan_to_num() - beta * e.penalty.nan_to_num())
    return (to_go - e.greedy.repeat_interleave(e.group_size)[:, None]) * e.mask


def _normalized(e: Experience, beta: float) -> Tensor:
    return group_normalized(e.grouped(e.paid(beta)), e.grouped(e.mask)).flatten(0, 1)


def _centered(e: Experience, beta: float) -> Tensor:
    return group_centered(e.grouped(e.paid(beta)), e.grouped(e.mask)).flatten(0, 1)


def _by_critic(e: Experience, beta: float) -> Tensor:
    return gae(e.rewards.nan_to_num() - beta * e.kl, e.values, e.mask)


def _to_go_whitened(e: Experience, beta: float) -> Tensor:
    return whitened(reward_to_go((e.rewards.nan_to_num() - beta * e.kl) * e.mask), e.mask)


#: Every method by name. `kl`: where the KL is charged; `loss_type`: what a completion's sum over tokens is divided by.
METHODS = {
    method.name: method
    for method in (
        Method("reinforce", _against_the_batch, ratio="completion"),
        Method("rloo", _against_the_others, ratio="completion"),
        Method("remax", _against_the_greedy, ratio="completion", greedy=True),
        Method("reinforce++", _to_go_whitened, loss_type="batch"),
        Method("ppo", _by_critic, loss_type="batch", critic=True, whiten=True),
        Method("grpo", _normalized, kl="loss"),
        Method("dr_grpo", _centered, kl="loss", loss_type="limit"),
        Method("dapo", _normalized, kl="loss", loss_type="batch", clip_high=0.28, filter=True),
        Method("gspo", _normalized, kl="loss", ratio="sequence", clip=3e-4, clip_high=4e-4),
    )
}


def reinforce(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """REINFORCE (Williams 1992) with the mean of all other completions of the batch as its baseline.

    One action a completion, KL in the reward. Options of this and all methods: see `Config` and `policy_gradient`.
    """
    return policy_gradient(policy, prompts, reward, METHODS["reinforce"], beta=beta, **options)


def rloo(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """REINFORCE with the leave-one-out baseline (2402.14740).

    The KL to `policy` is part of the reward: r - beta * log(pi / ref) of the whole completion (k1). The completion is
    one action. With dense rewards (not in the paper) each token is one, and its advantage is the reward-to-go against
    that of the others. From the second update on the same samples on, the ratio of the completion is clipped, as in
    TRL; the paper makes one update.
    """
    return policy_gradient(policy, prompts, reward, METHODS["rloo"], beta=beta, **options)


def remax(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """REINFORCE with the reward of the greedy completion as its baseline (ReMax, 2310.10505); group_size may be 1.

    The baseline ignores the KL, whose mean stays in the advantage: unbiased, but noisier than a baseline of both.
    """
    return policy_gradient(policy, prompts, reward, METHODS["remax"], beta=beta, **options)


def reinforce_plus_plus(
    policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options
) -> Policy:
    """Reward-to-go with the KL at every token, normalized over the batch, clipped (REINFORCE++, 2501.03262)."""
    return policy_gradient(policy, prompts, reward, METHODS["reinforce++"], beta=beta, **options)


def ppo(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """Proximal policy optimization (1707.06347) with a critic, GAE, and the KL in the reward (1909.08593).

    Four minibatches a batch by default, so that clipping acts; advantages are whitened over the batch. Common
    implementations (2403.17031) also clip the critic's values and take a constant off the reward of completions without
    an end; neither is done here. The critic is a copy of the policy, not of the reward model.
    """
    return policy_gradient(policy, prompts, reward, METHODS["ppo"], **{"beta": beta, "minibatches": 4, **options})


def grpo(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """Group relative policy optimization (2402.03300, eq. 3).

    Advantages are normalized by the group's standard deviation; the KL to `policy` is part of the loss (k3 at each
    token); each completion's token losses are averaged over its length, as in the paper. Dense rewards make it the
    paper's variant with process supervision. TRL differs by default: no KL and the loss of DAPO; and with a KL, k3
    times the importance ratio, whose gradient is that of KL(pi || ref) (2512.02556), where the paper's k3, as here,
    pulls like KL(ref || pi).
    """
    return policy_gradient(policy, prompts, reward, METHODS["grpo"], beta=beta, **options)


def dr_grpo(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """GRPO without the two divisions said to bias it, by the group's deviation and by the length (2503.20783).

    A completion's sum over tokens is divided by the constant `max_new_tokens`. The paper has no KL (beta=0); here it
    has that of the other methods, to be compared with them.
    """
    return policy_gradient(policy, prompts, reward, METHODS["dr_grpo"], beta=beta, **options)


def dapo(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.0, **options) -> Policy:
    """GRPO with a token-level loss, a higher upper clip and no groups of equal rewards (2503.14476).

    As in the paper there is no KL by default. `draws` > 1 samples again to replace the groups that were left out. The
    paper leaves out groups that are all right or all wrong; here, where rewards need not be 0 or 1, those of any equal
    rewards. Its penalty for overlong completions is not part of this method: make it part of the reward.
    """
    return policy_gradient(policy, prompts, reward, METHODS["dapo"], beta=beta, **options)


def gspo(policy: Policy, prompts: Prompts, reward: Reward | Callable, beta: Beta = 0.2, **options) -> Policy:
    """GRPO with one importance ratio a completion, normalized by its length, and a tight clip (2507.18071).

    The paper's objective has no KL (beta=0).
    """
    return policy_gradient(policy, prompts, reward, METHODS["gspo"], beta=beta, **options)
