"""The value of an answer's beginning: the reward that the policy can expect from there (controlled decoding).

Learned from rollouts (`PrefixValue`); or, where all completions can be written down, exact (`exact_values`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.policy import Batch, Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.model import RewardModel


def running(outputs: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """The score of each beginning of a completion, shape (N, T): what the model's pooling makes of its tokens."""
    if pooling == "last":
        return outputs * mask
    return (outputs * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)


class PrefixValue(RewardModel):
    """V(x, y_1..t) = E[r(x, y) | y_1..t], y going on from there as the policy does (2310.17022, CD-FUDGE).

    A head on every beginning of the policy's own samples, regressed on the reward that the whole of them got. `units`:
    mean and standard deviation of the rewards it was fit to; its outputs are rewards in those units.
    """

    kind = {"name": "prefix value", "format": "scalar", "granularity": "token", "source": "2310.17022"}

    units: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def fit(
        cls,
        policy: Policy,
        prompts: list,
        reward: Reward | Callable,
        n: int = 8,
        pooling: str = "mean",
        seed: int = 0,
        max_new_tokens: int = 48,
        **options,
    ) -> PrefixValue:
        """Roll out n answers to each prompt, score them, and fit; further options as in `RewardModel.train`."""
        rollout = policy.rollout(prompts, n, seed=seed, max_new_tokens=max_new_tokens)
        scores = as_reward(reward)(rollout.prompts, rollout.completions).scores
        if np.ptp(scores) == 0:
            raise AlignkitError("PrefixValue: every rollout got the same reward, so there is nothing to foresee; take "
                                "more prompts, a larger n, or another reward")  # fmt: skip
        value = cls.new(policy, seed, pooling)
        value.units = float(scores.mean()), float(scores.std())
        target = torch.tensor((scores - scores.mean()) / scores.std(), device=policy.device).float()
        batch = rollout.batch

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            rows = batch.rows(index)
            error = (value.by_prefix(rows) - target[index, None]) ** 2
            return (error * rows.mask).sum() / rows.mask.sum(), {}

        return value.train(loss, batch.attention.sum(1), seed=seed, **options)

    def by_prefix(self, batch: Batch) -> Tensor:
        """The value of each beginning, in standard units, shape (N, T); differentiable."""
        return running(self.outputs_by_token(batch)[..., 0], batch.mask, self.pooling)

    def judge(self, prompts: list, completions: list[str], batch_size: int = 512):
        said = super().judge(prompts, completions, batch_size)
        said.scores = said.scores * self.units[1] + self.units[0]
        return said


MOST = 100_000  # completions that are enumerated


@torch.no_grad()
def every_completion(policy: Policy, prompt: str, max_new_tokens: int) -> dict[tuple[int, ...], float]:
    """log pi of every completion there is, as token ids: those that end and those cut at max_new_tokens."""
    size, eos = policy.model.config.vocab_size, policy.tokenizer.eos_token_id
    if size**max_new_tokens > MOST:
        raise AlignkitError(f"{size} tokens to the power of {max_new_tokens} are too many completions to enumerate; "
                            "take a policy with few tokens and short completions")  # fmt: skip
    done, open_ = {}, {(): 0.0}
    head = policy.prompt_ids(prompt)
    for t in range(max_new_tokens):
        ids = torch.tensor([[*head, *prefix] for prefix in open_], device=policy.device)
        logp = torch.log_softmax(policy.model(input_ids=ids).logits[:, -1].double(), -1).tolist()
        longer = {(*y, v): open_[y] + row[v] for y, row in zip(open_, logp, strict=True) for v in range(size)}
        ends = {y for y in longer if y[-1] == eos or t + 1 == max_new_tokens}
        done |= {y: longer[y] for y in longer if y in ends}
        open_ = {y: longer[y] for y in longer if y not in ends}
    return done


def exact_values(
    logp: dict[tuple[int, ...], float], reward: Callable[[tuple[int, ...]], float], beta: float | None = None
) -> dict[tuple[int, ...], float]:
    """The value of each beginning of each completion in `logp` (from `every_completion`), the empty one included.

    E[r | beginning], controlled decoding's value; with `beta` the soft value beta * log E[exp(r / beta) | beginning].
    Tilting each next token by the soft value over beta gives the KL optimum pi_ref * exp(r / beta) / Z of whole
    completions: the factors telescope. E[r | beginning] gives the optimum one token ahead only.
    """
    if beta is not None and not beta > 0:
        raise AlignkitError(f"exact_values: beta must be above 0, not {beta}")
    mass: dict[tuple[int, ...], float] = {}
    total: dict[tuple[int, ...], float] = {}
    best = max(map(reward, logp))
    for y, lp in logp.items():
        gain = reward(y) if beta is None else np.exp((reward(y) - best) / beta)
        for k in range(len(y) + 1):
            mass[y[:k]] = mass.get(y[:k], 0.0) + np.exp(lp)
            total[y[:k]] = total.get(y[:k], 0.0) + np.exp(lp) * gain
    mean = {y: total[y] / mass[y] for y in mass}
    return mean if beta is None else {y: best + beta * float(np.log(value)) for y, value in mean.items()}
