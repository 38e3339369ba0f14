"""Losses on fresh samples: at every step the policy as it is now answers, and is judged on the spot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.feedback.annotator import Annotator
from alignkit.optimize.losses import dpo_loss, margin_of, regression_loss
from alignkit.policy import Policy, Rollout, check_same_vocabulary
from alignkit.rewards.base import Judgement, Reward, as_reward, columns_of, repeated
from alignkit.training import default_rate, digest, summed_logprobs, train
from alignkit.worlds.base import World

# --- who says which of two answers is better

#: label(prompts, a, b): for each row, is `a` the better one? True or False, or a probability in [0, 1].
Labeler = Callable[[list, list[str], list[str]], np.ndarray]


def as_labeler(world: World, annotator: Annotator, seed: int = 0) -> Labeler:
    """The annotator as a labeler: one sampled answer a row.

    The coin depends on `seed` and the two texts alone, so that an interrupted treatment hears the same answers again.
    """

    def label(prompts: list, a: list[str], b: list[str]) -> np.ndarray:
        p = annotator.prefers_first(world, prompts, a, b)
        return np.random.default_rng([seed, int(digest(prompts, a, b), 16)]).random(len(p)) < p

    return label


def win_probability(
    labeler: Labeler | Reward, prompts: list, a: list[str], b: list[str], columns: dict[str, list]
) -> np.ndarray:
    """P(a is better), shape (N,), in [0, 1], 1/2 where the texts are equal; a reward prefers the larger score and gives
    1/2 to ties. `columns`: what else the data set holds of each row, for a reward."""
    if isinstance(labeler, Reward):
        twice = {name: [*values, *values] for name, values in columns.items()}
        both = labeler([*prompts, *prompts], [*a, *b], **twice).all_scores("a comparison")
        said = 0.5 + 0.5 * np.sign(both[: len(a)] - both[len(a) :])
    elif callable(labeler):
        said = np.asarray(labeler(prompts, a, b), dtype=float)
    else:
        raise AlignkitError(
            f"a labeler must be a Reward or a function label(prompts, a, b), not {type(labeler).__name__}; for an "
            "Annotator: as_labeler(world, annotator)"
        )
    if said.shape != (len(a),) or not np.all((said >= 0) & (said <= 1)):
        raise AlignkitError(
            f"the labeler must return True or False, or a probability, for each of {len(a)} rows; it returned shape "
            f"{said.shape}, {said.ravel()[:3]} ..."
        )
    return np.where([x == y for x, y in zip(a, b, strict=True)], 0.5, said)


def heard(reward: Reward, said: Rollout, columns: dict[str, list]) -> Judgement:
    """What the reward says of samples that will be trained on; it may move with them. `columns`: one value a sample."""
    judgement = reward(said.prompts, said.completions, **columns)
    reward.update(judgement)
    return judgement


# --- the loop


def train_on_fresh(
    policy: Policy,
    prompts: list | Dataset,
    loss_of: Callable[[Policy, Policy, Rollout, dict[str, list]], tuple[Tensor, dict]],
    name: str,
    group_size: int,
    steps: int = 60,
    prompts_per_step: int = 32,
    learning_rate: float | None = None,
    reference: Policy | None = None,
    max_new_tokens: int = 48,
    seed: int = 0,
    **options,
) -> Policy:
    """`train` without data: each of `steps` updates samples `group_size` completions for each of `prompts_per_step`
    prompts from the policy as it is now; `loss_of(treated, reference, rollout, columns)` returns their loss and what to
    note. Returns a new policy. `reference`: fixed, default `policy` itself.

    `prompts`: a list, or a Dataset with a column `prompt`; `columns` are its others, one value a completion. The data
    are rows, one for each time that a prompt is asked. A minibatch's rows tell it from all others and seed its samples,
    so that training that was interrupted draws the same. A step's samples are read in parts that fit in memory
    (`Policy.in_parts`). Options: see `train`.
    """
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated, (asked, columns) = policy.copy(f"{policy.name} + {name}"), columns_of(prompts)
    check_at_least(name, 1, steps=steps, prompts_per_step=prompts_per_step, **{"the number of prompts": len(asked)})
    rows = steps * prompts_per_step

    def loss(index: Tensor, _: Tensor) -> tuple[Tensor, dict]:
        places = [i % len(asked) for i in index.tolist()]
        theirs = {name: [values[i] for i in places] for name, values in columns.items()}
        said = treated.rollout([asked[i] for i in places], group_size, seed=int(digest(index, seed), 16) % 2**63,
                               max_new_tokens=max_new_tokens)  # fmt: skip
        return loss_of(treated, reference, said, repeated(theirs, group_size))

    lengths = torch.tensor([len(treated.prompt_ids(p)) for p in asked]).repeat(-(-rows // len(asked)))[:rows]
    train(treated, loss, lengths, epochs=1, batch_size=prompts_per_step, learning_rate=learning_rate, prompts=asked,
          seed=seed, micro_batch_tokens=float("inf"), **options)  # fmt: skip
    sampled = rows * group_size
    treated.spent |= {"completions_sampled": sampled, "forward_rows": 2 * sampled, "backward_rows": sampled}
    return treated


# --- methods


def online_dpo(
    policy: Policy, prompts: list | Dataset, labeler: Labeler | Reward, beta: float = 0.2, **options
) -> Policy:
    """At each step two completions a prompt are sampled and labeled, and one step of DPO is taken with a fixed
    reference (OAIF 2402.04792). It trains on the tokens that were sampled: what was cut off has no end. Ties and equal
    samples count 0. Options: see `train_on_fresh`."""
    check_positive("online_dpo", beta=beta)  # at 0 the loss says nothing about the policy

    def loss_of(treated: Policy, reference: Policy, said: Rollout, columns: dict) -> tuple[Tensor, dict]:
        first = {name: values[::2] for name, values in columns.items()}
        better = win_probability(labeler, said.prompts[::2], said.completions[::2], said.completions[1::2], first)
        wins, differ = (torch.tensor(each, device=treated.device) for each in (better > 0.5, better != 0.5))
        batch = said.batch.rows(torch.arange(len(said.batch)).view(-1, 2).T.flatten())  # all first ones, all second
        logp, ref = treated.token_logprobs(batch).sum(1).chunk(2), summed_logprobs(reference, batch).chunk(2)
        sides = [torch.where(wins, *pair) for pair in (logp, reversed(logp), ref, reversed(ref))]
        each = dpo_loss(*sides, beta)
        return torch.where(differ, each, 0.0 * each).sum() / differ.sum().clamp(min=1), {
            "margin": beta * margin_of(*sides).mean().item(),
            "kl": torch.cat([now.detach() - then for now, then in zip(logp, ref, strict=True)]).mean().item(),
            "different": differ.float().mean().item(),
        }

    treated = train_on_fresh(policy, prompts, loss_of, "online dpo", 2, **options)
    treated.spent["judgments"] = treated.spent["completions_sampled"] // 2
    return treated


def reward_regression(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, beta: float = 0.2, group_size: int = 4,
    learning_rate: float | None = None, **options,
) -> Policy:  # fmt: skip
    """Log-ratios are regressed on rewards: at each step `group_size` completions a prompt are sampled and scored, and
    one step on `regression_loss` is taken. Options: see `train_on_fresh`.

    (After REBEL, Gao et al. 2024, which moves its reference and makes many updates a batch. The loss is divided by
    beta, so that its gradient is RLOO's up to a constant.)
    """
    check_positive("reward_regression", beta=beta)  # at 0 no policy fits the rewards
    check_at_least("reward_regression", 2, group_size=group_size)
    reward = as_reward(reward)

    def loss_of(treated: Policy, reference: Policy, said: Rollout, columns: dict) -> tuple[Tensor, dict]:
        scores = torch.from_numpy(heard(reward, said, columns).all_scores("reward_regression"))
        scores = scores.float().to(treated.device)
        order = said.batch.attention.sum(1).argsort()  # rows of similar length are read together, to spare padding
        logp = torch.cat([treated.token_logprobs(said.batch.rows(rows)).sum(1) for rows in order.chunk(4)])
        logp, ref = logp[order.argsort()], summed_logprobs(reference, said.batch, len(said.batch) // 4 + 1)
        groups = [values.view(-1, group_size) for values in (logp, ref, scores)]
        return regression_loss(*groups, beta).mean() / beta, {
            "reward": scores.mean().item(), "kl": (logp.detach() - ref).mean().item()
        }  # fmt: skip

    rate = learning_rate or 2 * default_rate(policy.model, "policy gradient")
    return train_on_fresh(policy, prompts, loss_of, "regression", group_size, learning_rate=rate, **options)
