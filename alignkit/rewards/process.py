"""Rewards for each step of an answer: a head read at the steps' tokens, and ways to make one score of many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from alignkit.errors import DataError, check_choice
from alignkit.policy import Batch, Policy, load_policy
from alignkit.rewards.base import Judgement
from alignkit.rewards.data import check_steps
from alignkit.rewards.model import RewardModel, read_each, read_rows
from alignkit.rewards.texts import sentence_ends, step_tokens

UNITS = ("step", "segment", "response")
AGGREGATES = {  # of the steps so far
    "product": np.cumprod,
    "min": np.minimum.accumulate,
    "last": lambda p: p,
    "mean": lambda p: np.cumsum(p) / np.arange(1, len(p) + 1),
    "sum": lambda p: np.cumsum(2 * p - 1),
}


def aggregate_steps(values: np.ndarray, how: str = "product") -> np.ndarray:
    """The aggregate after each step, shape (steps,); the last entry is that of the whole answer.

    `values`: for each step the probability that it is right. "product": that all are (2305.20050); "min": the weakest
    step; "last", "mean"; "sum": of 2p - 1, so that a step that is as likely wrong as right adds nothing (2306.01693
    pays +1 or -1 a segment).
    """
    check_choice("aggregate_steps", "aggregate", how, AGGREGATES)
    return AGGREGATES[how](np.asarray(values, dtype=np.float64))


class ProcessReward(RewardModel):
    """The probability that each step is right, given what came before it: a process reward model (2305.20050).

    - `unit` is for the card: a "step" of a solution, a "segment" (sentence) of any text, or the whole "response", which
      makes it an outcome reward model with everything else equal;
    - `pooling` "last" reads the head at the last token of a step, "mean" averages it over the step's tokens;
    - `surprise`: beside its head, the logit reads how likely the backbone found the step's tokens (the sum and the
      least of their log-probabilities, by logistic regression). Tiny backbones can't learn from some hundred labels to
      compare what was written with what they would have written; this hands it to them;
    - `aggregate` makes the answer's score: see `aggregate_steps`. An answer without steps has score 0. The judgement's
      `steps` say what each adds to it, so that they sum to the score and more steps are not paid for being more.

    At scoring time steps end where sentences do, unless `ends_of(completion)` says otherwise (in characters).
    """

    reads = "chat"
    kind = {"name": "process", "granularity": "step", "source": "2305.20050"}
    kept = {"unit": "step", "aggregate": "product", "surprise": None}  # the weights of sum and least, the intercept
    ends_of = staticmethod(sentence_ends)

    def __init__(self, model, backbone: Policy, pooling: str = "mean"):
        super().__init__(model, backbone, pooling)
        self.card = replace(self.card, granularity=self.unit)

    @classmethod
    def fit(
        cls, steps: Dataset, backbone: Policy | str, unit: str = "step", pooling: str = "mean",
        aggregate: str = "product", surprise: bool = True, seed: int = 0, **options,
    ) -> ProcessReward:  # fmt: skip
        """Fit to TRL's process-reward format: `prompt/completions/labels`, `completions` a list of steps, `labels` one
        true or false (or a number in [0, 1], say from rollouts) for each. The steps are read as one text, with a space
        between them."""
        check_choice("ProcessReward", "unit", unit, UNITS)
        check_choice("ProcessReward", "aggregate", aggregate, AGGREGATES)
        labels = check_steps(steps)
        reward = cls.new(backbone, seed, pooling).but(unit=unit, aggregate=aggregate)
        texts = [" ".join(row) for row in steps["completions"]]
        rows = reward.encode(steps["prompt"][:], texts)
        ends = [np.cumsum([len(text) + 1 for text in row]) - 1 for row in steps["completions"]]
        places = reward.places(rows, texts, ends)
        target = _padded(labels, torch.nan).float()
        offset = reward.offsets(rows, places, target) if surprise else torch.zeros_like(target)

        def loss(part: Tensor, batch: Tensor) -> tuple[Tensor, dict]:
            goal = target[part].to(rows.ids.device)
            logits = reward.step_logits(rows.rows(part), places[part]) + offset[part].to(goal.device)
            known = ~goal.isnan()
            losses = F.binary_cross_entropy_with_logits(logits[known], goal[known], reduction="sum")
            right = (((logits > 0) == (goal > 0.5)) & known).sum(1) / known.sum(1)
            return losses / (~target[batch].isnan()).sum().item(), {"accuracy": right}

        return reward.train(loss, rows.attention.sum(1), seed=seed, **options)

    def places(self, batch: Batch, texts: list[str], ends: list[list[int]]) -> Tensor:
        """Each step's last token, shape (N, S), -1 where there is none."""
        rows = zip(batch.tails, texts, ends, strict=True)
        return _padded([step_tokens(self.backbone, *row) for row in rows], -1)

    def but(self, **changes) -> ProcessReward:
        """As `RewardModel.but`, for `unit`, `aggregate` and `ends_of`; the card tells the unit."""
        other = super().but(**changes)
        other.card = replace(self.card, granularity=other.unit)
        return other

    def step_logits(self, batch: Batch, places: Tensor) -> Tensor:
        """The head's logit for each step, shape (N, S), without what surprise adds; differentiable."""
        by_token = self.outputs_by_token(batch)[..., 0]
        last = places.to(by_token.device).clamp(0, by_token.shape[1] - 1)
        if self.pooling == "last":
            return by_token.gather(1, last)
        return _sums(by_token, last) / (last - _before(last)).clamp(min=1)

    def offsets(self, batch: Batch, places: Tensor, target: Tensor | None = None) -> Tensor:
        """What surprise adds to each step's logit, shape (N, S); with `target`, its weights are fit first."""
        read = torch.stack(read_rows(
            batch, self.backbone.model, lambda rows, part: _surprise(self.backbone, rows, places[part])
        ))  # fmt: skip
        if target is not None:
            self.surprise = _logistic(read, target)
        total, least, constant = self.surprise or (0.0, 0.0, 0.0)
        return (total * read[..., 0] + least * read[..., 1] + constant).float()

    def step_probabilities(self, prompts: list, completions: list[str]) -> list[np.ndarray]:
        """For each completion the probability that each of its steps is right; N arrays of shape (steps,)."""

        def read(rows: Batch, index: list[int]) -> list[np.ndarray]:
            texts = [completions[i] for i in index]
            ends = [self.ends_of(text) for text in texts]
            places = self.places(rows, texts, ends)
            logits = self.step_logits(rows, places).cpu()
            if self.surprise:
                logits = logits + self.offsets(rows, places)
            return [p[: len(e)] for p, e in zip(logits.double().sigmoid().numpy(), ends, strict=True)]

        return read_each(self, read, prompts, completions)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        running = [aggregate_steps(p, self.aggregate) for p in self.step_probabilities(prompts, completions)]
        scores = np.array([values[-1] if len(values) else 0.0 for values in running])
        return Judgement(scores, steps=[np.diff(values, prepend=0.0) for values in running],
                         ends=[self.ends_of(text) for text in completions])  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """As `RewardModel.save`, without `ends_of`; where surprise counts, the backbone goes into a folder beside."""
        if self.surprise:
            self.backbone.save(Path(folder) / "backbone")
        return super().save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> ProcessReward:
        reward = super().load(folder)
        if reward.surprise:
            reward.backbone = load_policy(Path(folder) / "backbone")
        return reward


def _before(last: Tensor) -> Tensor:
    """The place before each step's first token."""
    return F.pad(last[:, :-1], (1, 0), value=-1)


def _sums(by_token: Tensor, last: Tensor) -> Tensor:
    """Sums of (N, T) over the tokens of each step; last (N, S)."""
    total = F.pad(by_token.cumsum(1), (1, 0))  # total[:, t]: over the first t tokens
    return total.gather(1, last + 1) - total.gather(1, _before(last) + 1)


def _surprise(backbone: Policy, batch: Batch, places: Tensor) -> Tensor:
    """Sum and least of the log-probabilities of each step's tokens, shape (N, S, 2); 0 where there is no step."""
    logp = backbone.token_logprobs(batch).double().cpu()
    last = places.clamp(min=0)
    time, first = torch.arange(logp.shape[1]), _before(last)
    inside = (time > first[..., None]) & (time <= last[..., None])
    least = logp[:, None].masked_fill(~inside, 0.0).amin(-1)
    return torch.stack([_sums(logp, last), least], -1) * (places >= 0)[..., None]


def _logistic(read: Tensor, target: Tensor) -> list[float]:
    """Weights and intercept of a logistic regression of labels (soft ones count as parts of both) on surprise."""
    known = ~target.isnan()
    x, p = read[known].numpy(), target[known].double().numpy()
    y, weight = np.repeat([1, 0], len(p)), np.concatenate([p, 1 - p])
    if p.min() == p.max() and p.min() in (0, 1):
        raise DataError(f"all {len(p)} labels are {bool(p[0])}: there is nothing to learn from them")
    fit = LogisticRegression(max_iter=1000).fit(np.concatenate([x, x]), y, sample_weight=weight)
    return [*fit.coef_[0].tolist(), float(fit.intercept_[0])]


def _padded(rows: list[list], fill: float) -> Tensor:
    width = max(1, *map(len, rows)) if rows else 0
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows]).view(len(rows), width)
