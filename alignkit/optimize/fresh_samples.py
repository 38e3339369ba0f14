"""Losses on fresh samples: at every step the policy as it is now answers, and is judged on the spot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.feedback.annotator import Annotator
from alignkit.optimize.experience import some_rows
from alignkit.optimize.losses import dpo_loss, regression_loss
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Policy, check_same_vocabulary
from alignkit.rewards.base import Reward, as_reward, columns_of, repeated
from alignkit.training import default_rate, digest
from alignkit.worlds.base import World

# --- who says which of two answers is better

#: label(prompts, a, b): for each row, is `a` the better one? True or False, or a probability in [0, 1].
Labeler = Callable[[list, list[str], list[str]], np.ndarray]


def as_labeler(world: World, annotator: Annotator, seed: int = 0, answers: bool = True) -> Labeler:
    """The annotator as a labeler: one sampled answer a row, or (`answers=False`) the probability of it.

    The coin depends on `seed` and the two texts alone, so that an interrupted treatment hears the same answers again.
    """

    def label(prompts: list, a: list[str], b: list[str]) -> np.ndarray:
        p = annotator.prefers_first(world, prompts, a, b)
        return np.random.default_rng([seed, int(digest(prompts, a, b), 16)]).random(len(p)) < p if answers else p

    return label


def win_probability(
    labeler: Labeler | Reward, prompts: list, a: list[str], b: list[str], columns: dict[str, list] | None = None
) -> np.ndarray:
    """P(a is better), shape (N,), in [0, 1]; a reward prefers the larger score and gives 1/2 to ties.

    `columns`: what else the data set holds of each row, for a reward.
    """
    if labeler is None:
        raise AlignkitError("no reward and no labeler was given: pass a Reward, or a function label(prompts, a, b)")
    if isinstance(labeler, Reward):
        twice = {name: [*values, *values] for name, values in (columns or {}).items()}
        both = labeler([*prompts, *prompts], [*a, *b], **twice).all_scores("a comparison")
        return 0.5 + 0.5 * np.sign(both[: len(a)] - both[len(a) :])
    if not callable(labeler):
        raise AlignkitError(
            f"a labeler must be a Reward or a function label(prompts, a, b), not {type(labeler).__name__}; for an "
            "Annotator: as_labeler(world, annotator)"
        )
    said = np.asarray(labeler(prompts, a, b), dtype=float)
    if said.shape != (len(a),) or not np.all((said >= 0) & (said <= 1)):
        raise AlignkitError(
            f"the labeler must return True or False, or a probability, for each of {len(a)} rows; it returned shape "
            f"{said.shape}, {said.ravel()[:3]} ..."
        )
    return said


# --- the loop


def train_on_fresh(
    treated: Policy,
    prompts: list | Dataset,
    loss_of: Callable[[list, dict[str, list], int], tuple[Tensor, dict]],
    steps: int,
    prompts_per_step: int,
    learning_rate: float | None,
    seed: int = 0,
    **options,
) -> Policy:
    """`train` without data: `loss_of(asked, columns, seed)` samples completions of the prompts `asked` with that seed,
    and returns the loss and what to note; changes and returns `treated`.

    `prompts`: a list, or a Dataset with a column `prompt`; `columns` are its others. The data are rows, one for each
    time that a prompt is asked. A minibatch's rows tell it from all others and seed its samples, so that training that
    was interrupted draws the same. A step's samples are read in parts that fit in memory (`Policy.in_parts`). Options:
    see `train`.
    """
    asked, columns = columns_of(prompts)
    if not asked or min(steps, prompts_per_step) < 1:
        raise AlignkitError(
            f"{treated.name}: there must be prompts, and steps and prompts_per_step at least 1; not {len(asked)}, "
            f"{steps}, {prompts_per_step}"
        )
    rows = steps * prompts_per_step

    def loss(index: Tensor, _: Tensor) -> tuple[Tensor, dict]:
        places = [i % len(asked) for i in index.tolist()]
        theirs = {name: [values[i] for i in places] for name, values in columns.items()}
        return loss_of([asked[i] for i in places], theirs, int(digest(index, seed), 16) % 2**63)

    lengths = torch.tensor([len(treated.prompt_ids(p)) for p in asked]).repeat(-(-rows // len(asked)))[:rows]
    return train(treated, loss, lengths, 1, prompts_per_step, learning_rate, prompts=asked[:16], seed=seed,
                 micro_batch_tokens=float("inf"), **options)  # fmt: skip


# --- methods

PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def online_dpo(
    policy: Policy,
    prompts: list | Dataset,
    labeler: Labeler | Reward,
    beta: float = 0.2,
    steps: int = 60,
    prompts_per_step: int = 32,
    learning_rate: float | None = None,
    loss: PairLoss = dpo_loss,
    reference: Policy | None = None,
    max_new_tokens: int = 48,
    seed: int = 0,
    **options,
) -> Policy:
    """Each of `steps` updates samples two completions for each of `prompts_per_step` prompts from the policy as it is
    now, has them labeled, and takes one step of DPO (or of another `loss` of pairs) with a fixed reference (OAIF
    2402.04792); returns a new policy. It trains on the tokens that were sampled: what was cut off has no end. Ties and
    equal samples count 0. Options: see `train`."""
    check_positive("online_dpo", beta=beta)  # at 0 the loss says nothing about the policy
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + online dpo")

    def loss_of(asked: list, columns: dict[str, list], seed: int) -> tuple[Tensor, dict]:
        said = treated.rollout(asked, 2, seed=seed, max_new_tokens=max_new_tokens)
        said = some_rows(said, torch.arange(2 * len(asked)).view(-1, 2).T.flatten())  # all first ones, all second ones
        a, b = said.completions[: len(asked)], said.completions[len(asked) :]
        better = win_probability(labeler, asked, a, b, columns)
        better = np.where([x == y for x, y in zip(a, b, strict=True)], 0.5, better)
        wins = torch.tensor(better > 0.5, device=treated.device)
        logp, ref = treated.token_logprobs(said.batch).sum(1).chunk(2), summed_logprobs(reference, said.batch).chunk(2)
        chosen, rejected = torch.where(wins, *logp), torch.where(wins, *reversed(logp))
        ref_chosen, ref_rejected = torch.where(wins, *ref), torch.where(wins, *reversed(ref))
        differ = torch.tensor(better != 0.5, device=treated.device)
        each = loss(chosen, rejected, ref_chosen, ref_rejected, beta)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        return torch.where(differ, each, 0.0 * each).sum() / differ.sum().clamp(min=1), {
            "margin": beta * margin.mean().item(),
            "kl": torch.cat([now.detach() - then for now, then in zip(logp, ref, strict=True)]).mean().item(),
            "different": differ.float().mean().item(),
        }

    train_on_fresh(treated, prompts, loss_of, steps, prompts_per_step, learning_rate, seed, **options)
    asked = steps * prompts_per_step
    treated.spent |= {"completions_sampled": 2 * asked, "judgments": asked, "forward_rows": 4 * asked,
                      "backward_rows": 2 * asked}  # fmt: skip
    return treated


def reward_regression(
    policy: Policy,
    prompts: list | Dataset,
    reward: Reward | Callable,
    beta: float = 0.2,
    steps: int = 60,
    prompts_per_step: int = 32,
    group_size: int = 4,
    learning_rate: float | None = None,
    reference: Policy | None = None,
    max_new_tokens: int = 48,
    seed: int = 0,
    **options,
) -> Policy:
    """Log-ratios are regressed on rewards: each of `steps` updates samples `group_size` completions for each of
    `prompts_per_step` prompts from the policy as it is now and takes one step on `regression_loss`; returns a new
    policy. Options: see `train`.

    (After REBEL, Gao et al. 2024, which moves its reference and makes many updates a batch. The loss is divided by
    beta, so that its gradient is RLOO's up to a constant.)
    """
    check_positive("reward_regression", beta=beta)  # at 0 no policy fits the rewards
    check_at_least("reward_regression", 2, group_size=group_size)
    reward = as_reward(reward)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + regression")

    def loss_of(asked: list, columns: dict[str, list], seed: int) -> tuple[Tensor, dict]:
        said = treated.rollout(asked, group_size, seed=seed, max_new_tokens=max_new_tokens)
        judgement = reward(said.prompts, said.completions, **repeated(columns, group_size))
        reward.update(judgement)
        scores = torch.from_numpy(judgement.all_scores("reward_regression")).float().to(treated.device)
        order = said.batch.attention.sum(1).argsort()  # rows of similar length are read together, to spare padding
        logp = torch.cat([treated.token_logprobs(said.batch.rows(rows)).sum(1) for rows in order.chunk(4)])
        logp, ref = logp[order.argsort()], summed_logprobs(reference, said.batch, len(said.batch) // 4 + 1)
        groups = [values.view(-1, group_size) for values in (logp, ref, scores)]
        return regression_loss(*groups, beta).mean() / beta, {
            "reward": scores.mean().item(), "kl": (logp.detach() - ref).mean().item()
        }  # fmt: skip

    rate = learning_rate or 2 * default_rate(treated.model, "policy gradient")
    train_on_fresh(treated, prompts, loss_of, steps, prompts_per_step, rate, seed, **options)
    sampled = steps * prompts_per_step * group_size
    treated.spent |= {"completions_sampled": sampled, "forward_rows": 2 * sampled, "backward_rows": sampled}
    return treated
