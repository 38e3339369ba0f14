"""Losses on fresh samples: at every step the policy as it is now answers, and is judged on the spot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.optimize.losses import dpo_loss
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Batch, Policy, check_same_vocabulary
from alignkit.rewards.base import Reward, as_reward
from alignkit.training import digest
from alignkit.worlds.base import World


def train_on_fresh(
    treated: Policy,
    prompts: list,
    loss_of: Callable[[list, int], tuple[Tensor, dict]],
    steps: int,
    batch_size: int,
    learning_rate: float | None,
    seed: int = 0,
    **options,
) -> Policy:
    """`train` without data: `loss_of(asked, seed)` samples completions of the prompts `asked` with that seed, and
    returns the loss and what to note; changes and returns `treated`.

    The data are rows, one for each time that a prompt is asked. A minibatch's rows tell it from all others and seed its
    samples, so that training that was interrupted draws the same. Options: see `train`.
    """
    if not prompts or min(steps, batch_size) < 1:
        raise AlignkitError(
            f"{treated.name}: there must be prompts, and steps and prompts a step at least 1; not {len(prompts)}, "
            f"{steps}, {batch_size}"
        )
    rows = steps * batch_size

    def loss(index: Tensor, _: Tensor) -> tuple[Tensor, dict]:
        return loss_of([prompts[i % len(prompts)] for i in index], int(digest(index, seed), 16) % 2**63)

    lengths = torch.tensor([len(treated.prompt_ids(p)) for p in prompts]).repeat(-(-rows // len(prompts)))[:rows]
    return train(treated, loss, lengths, 1, batch_size, learning_rate, seed=seed,
                 micro_batch_tokens=float("inf"), **options)


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


def win_probability(labeler: Labeler | Reward, prompts: list, a: list[str], b: list[str]) -> np.ndarray:
    """P(a is better), shape (N,), in [0, 1]; a reward prefers the larger score and gives 1/2 to ties."""
    if labeler is None:
        raise AlignkitError("no reward and no labeler was given: pass a Reward, or a function label(prompts, a, b)")
    if isinstance(labeler, Reward):
        both = labeler(list(prompts) * 2, list(a) + list(b)).scores
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


PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def online_dpo(
    policy: Policy,
    prompts: list,
    labeler: Labeler | Reward,
    beta: float = 0.2,
    steps: int = 60,
    batch_size: int = 32,
    learning_rate: float | None = None,
    loss: PairLoss = dpo_loss,
    reference: Policy | None = None,
    seed: int = 0,
    **options,
) -> Policy:
    """Each of `steps` updates samples two completions for each of `batch_size` prompts from the policy as it is now,
    has them labeled, and takes one step of DPO (or of another `loss` of pairs) with a fixed reference (OAIF
    2402.04792); returns a new policy. Ties and equal samples count 0. Options: see `train`."""
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"online_dpo: beta must be > 0, not {beta}; at 0 the loss says nothing about the policy")
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + online dpo")

    def loss_of(asked: list, seed: int) -> tuple[Tensor, dict]:
        said = treated.sample(asked, 2, seed=seed)
        a, b = [texts[0] for texts in said], [texts[1] for texts in said]
        better = win_probability(labeler, asked, a, b)
        better = np.where([x == y for x, y in zip(a, b, strict=True)], 0.5, better)
        wins = torch.tensor(better > 0.5, device=treated.device)
        batch = treated.encode(asked * 2, a + b)
        logp, ref = treated.token_logprobs(batch).sum(1).chunk(2), summed_logprobs(reference, batch).chunk(2)
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

    train_on_fresh(treated, prompts, loss_of, steps, batch_size, learning_rate, seed, **options)
    treated.spent |= {"completions_sampled": 2 * steps * batch_size, "judgments": steps * batch_size,
                      "forward_rows": 4 * steps * batch_size, "backward_rows": 2 * steps * batch_size}  # fmt: skip
    return treated


def regression_loss(logp: Tensor, ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The variance of beta log pi/ref - r within groups, (prompts, group) each; one number a prompt.

    Half the mean squared error of beta (difference of log-ratios) against (difference of rewards) over all pairs of a
    group. It is 0 exactly where pi is pi_ref exp(r / beta) / Z. On fresh samples its gradient is that of RLOO with the
    KL in the reward, times 2 beta (group - 1) / group.
    """
    if logp.ndim != 2 or logp.shape[1] < 2:
        raise AlignkitError(f"regression_loss needs groups of at least 2 completions, got shape {tuple(logp.shape)}")
    return (beta * (logp - ref) - reward).var(1, correction=0)


def reward_regression(
    policy: Policy,
    prompts: list,
    reward: Reward | Callable,
    beta: float = 0.2,
    steps: int = 60,
    prompts_per_step: int = 32,
    group_size: int = 4,
    learning_rate: float = 1e-3,
    reference: Policy | None = None,
    seed: int = 0,
    **options,
) -> Policy:
    """Each of `steps` updates samples `group_size` completions for each of `prompts_per_step` prompts from the policy
    as it is now and takes one step on `regression_loss`; returns a new policy. Options: see `train`.

    (REBEL, Gao et al. 2024, moves its reference and makes many updates a batch. The loss is divided by beta, so that
    its gradient is RLOO's up to a constant.)
    """
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"reward_regression: beta must be > 0, not {beta}; at 0 no policy fits the rewards")
    if group_size < 2:
        raise AlignkitError(
            f"reward_regression compares completions of a prompt: group_size must be at least 2, not {group_size}"
        )
    reward = as_reward(reward)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + regression")

    def loss_of(asked: list, seed: int) -> tuple[Tensor, dict]:
        said = treated.rollout(asked, group_size, seed=seed)
        scores = torch.from_numpy(reward(said.prompts, said.completions).scores).float().to(treated.device)
        logp, ref = _summed(treated, said.batch), summed_logprobs(reference, said.batch, len(said.batch) // 4 + 1)
        groups = [values.view(-1, group_size) for values in (logp, ref, scores)]
        return regression_loss(*groups, beta).mean() / beta, {
            "reward": scores.mean().item(), "kl": (logp.detach() - ref).mean().item()
        }  # fmt: skip

    train_on_fresh(treated, prompts, loss_of, steps, prompts_per_step, learning_rate, seed, **options)
    sampled = steps * prompts_per_step * group_size
    treated.spent |= {"completions_sampled": sampled, "forward_rows": 2 * sampled, "backward_rows": sampled}
    return treated


def _summed(policy: Policy, batch: Batch, parts: int = 4) -> Tensor:
    """log pi of each completion, differentiable; read in parts of similar length, to spare padding."""
    order = batch.attention.sum(1).argsort()
    logp = torch.cat([policy.token_logprobs(batch.rows(rows)).sum(1) for rows in order.chunk(parts)])
    return logp[order.argsort()]
