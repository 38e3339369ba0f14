"""Rewards of several numbers: one head an aspect, weights that can be changed later, and a gate that sets them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from alignkit.errors import AlignkitError, DataError
from alignkit.policy import Batch, Policy, positions
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.data import check_columns, check_numbers, check_pairs, check_texts
from alignkit.rewards.losses import bradley_terry_loss
from alignkit.rewards.model import RewardModel
from alignkit.taxonomy import RewardCard


class MultiAspect(RewardModel):
    """Attribute regression (HelpSteer, 2311.09528): one output of the head for each rated aspect.

    `judge` gives every aspect in the units of its ratings, and their weighted sum as the score. The weights are no part
    of the fit: `with_weights` changes them without a new label.
    """

    kind = {"name": "multi-aspect", "format": "vector", "granularity": "multi-aspect", "objective": "multi",
            "source": "2311.09528"}  # fmt: skip

    def __init__(self, model, codec: Policy, pooling: str = "mean", name: str | None = None):
        super().__init__(model, codec, pooling, name)
        unnamed = [(f"aspect {k}", 0.0, 1.0, 1.0) for k in range(model.config.num_labels)]
        names, *columns = zip(*(getattr(model.config, "alignkit_aspects", None) or unnamed), strict=True)
        self.mean, self.spread, weights = (np.array(column, dtype=float) for column in columns)
        self.weights = dict(zip(names, weights.tolist(), strict=True))

    @property
    def aspects(self) -> list[str]:
        return list(self.weights)

    @classmethod
    def fit(
        cls,
        ratings: Dataset,
        backbone: Policy | str,
        aspects: Sequence[str],
        weights: Mapping[str, float] | None = None,
        pooling: str = "mean",
        seed: int = 0,
        **options,
    ) -> MultiAspect:
        """Fit to `prompt/completion` and one column of numbers for each of `aspects`, by least squares.

        Each aspect is standardized first, so that all count alike in the loss. `weights` (default: 1 each) only serve
        the score. Further options as in `RewardModel.train`.
        """
        if isinstance(aspects, str) or not aspects:
            raise DataError(f"aspects is {aspects!r}; name at least one column of ratings, in a list")
        check_columns(ratings, ["prompt", "completion", *aspects], "ratings")
        check_texts(ratings, "completion")
        values = np.stack([check_numbers(ratings, name) for name in aspects], axis=1)
        mean, spread = values.mean(0), values.std(0)
        for name, s, first in zip(aspects, spread, values[0], strict=True):
            if s == 0:
                raise DataError(f"all {len(values)} ratings of {name!r} are {first:g}: leave that aspect out")
        reward = cls.new(backbone, seed, pooling, outputs=len(aspects))
        reward.mean, reward.spread, reward.weights = mean, spread, dict.fromkeys(aspects, 1.0)
        reward.weights = reward.with_weights(weights or {}).weights
        batch = reward.codec.encode(ratings["prompt"][:], ratings["completion"][:])
        target = torch.tensor((values - mean) / spread, device=batch.ids.device).float()

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            return (reward.outputs(batch.rows(index)) - target[index]).pow(2).mean(), {}

        return reward.train(loss, batch.attention.sum(1), seed=seed, **options)

    def rate(self, prompts: list, completions: list[str]) -> np.ndarray:
        """Every aspect in the units of its ratings, shape (N, K)."""
        return self.mean + self.spread * self.predict(prompts, completions)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        rated = self.rate(prompts, completions)
        return Judgement(rated @ np.array(list(self.weights.values())),
                         aspects={name: rated[:, k] for k, name in enumerate(self.aspects)})  # fmt: skip

    def with_weights(self, weights: Mapping[str, float]) -> MultiAspect:
        """The same heads under other weights; aspects not named keep theirs. Nothing is fit, nothing is copied."""
        unknown = [name for name in weights if name not in self.weights]
        if unknown:
            raise AlignkitError(f"no aspect {unknown[0]!r} in this reward; it has {', '.join(self.aspects)}")
        other = copy.copy(self)
        other.weights = {name: float(weights.get(name, w)) for name, w in self.weights.items()}
        return other

    def save(self, folder: str | Path) -> Path:
        """As `RewardModel.save`; names, units and weights of the aspects go into the config."""
        table = zip(self.aspects, self.mean.tolist(), self.spread.tolist(), self.weights.values(), strict=True)
        self.model.config.alignkit_aspects = [list(row) for row in table]  # a list: a saved config sorts its keys
        return super().save(folder)


class Gated(Reward):
    """Weights that depend on the prompt (ArmoRM, 2406.12845, eq. 3): score = g(x) . a(x, y).

    g is a small network from the prompt's last hidden state, softmax over aspects; a are the aspects of a `MultiAspect`
    in standard deviations of their ratings. Fit on preference pairs; the heads stay as they are.
    """

    def __init__(self, heads: MultiAspect, network: nn.Module, scale: float):
        self.heads, self.network, self.scale = heads, network, scale
        self.card = RewardCard(name="gated multi-aspect", construction_basis="data-driven", format="vector",
                               expression="explicit", granularity="multi-aspect", objective="multi",
                               source="2406.12845")  # fmt: skip

    @classmethod
    def fit(
        cls,
        pairs: Dataset,
        heads: MultiAspect,
        hidden: int = 32,
        steps: int = 300,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> Gated:
        """Fit the gate to `prompt/chosen/rejected` by the Bradley-Terry likelihood, on all pairs at once."""
        check_pairs(pairs)
        prompts = pairs["prompt"][:]
        gap = heads.predict(prompts, pairs["chosen"][:]) - heads.predict(prompts, pairs["rejected"][:])
        gap, states = torch.tensor(gap).float(), prompt_states(heads, prompts)
        torch.manual_seed(seed)
        # the last layer starts at zero: equal weights, whatever the prompt
        network = nn.Sequential(nn.LayerNorm(states.shape[1]), nn.Linear(states.shape[1], hidden), nn.ReLU(),
                                nn.Linear(hidden, gap.shape[1]))  # fmt: skip
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
        log_scale = torch.zeros((), requires_grad=True)
        groups = [{"params": network.parameters(), "weight_decay": weight_decay},
                  {"params": [log_scale], "weight_decay": 0.0}]  # fmt: skip
        optimizer = torch.optim.AdamW(groups, lr=learning_rate)
        for _ in range(steps):
            score = log_scale.exp() * (network(states).softmax(-1) * gap).sum(-1)
            loss = bradley_terry_loss(score, torch.zeros_like(score)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(heads, network.eval(), log_scale.exp().item())

    @torch.no_grad()
    def gate(self, prompts: list) -> np.ndarray:
        """The weights g(x), shape (N, K); each row sums to 1."""
        return self.network(prompt_states(self.heads, prompts)).softmax(-1).double().numpy()

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        outputs = self.heads.predict(prompts, completions)
        rated = self.heads.mean + self.heads.spread * outputs
        return Judgement(self.scale * (self.gate(prompts) * outputs).sum(1) if len(prompts) else np.zeros(0),
                         aspects={name: rated[:, k] for k, name in enumerate(self.heads.aspects)})  # fmt: skip


@torch.no_grad()
def prompt_states(reward: RewardModel, prompts: list, batch_size: int = 512) -> Tensor:
    """The backbone's hidden state at the end of each prompt, before any answer; shape (N, hidden)."""
    keys = [str(prompt) for prompt in prompts]
    distinct = dict(zip(keys, prompts, strict=True))
    batch = reward.codec.encode(list(distinct.values()), [""] * len(distinct), ended=False)
    parts = [_last_state(reward, batch.rows(rows)) for rows in torch.arange(len(batch)).split(batch_size)]
    place = {key: i for i, key in enumerate(distinct)}
    return torch.cat(parts)[[place[key] for key in keys]] if keys else torch.zeros(0, reward.model.config.hidden_size)


def _last_state(reward: RewardModel, batch: Batch) -> Tensor:
    out = reward.model.base_model(input_ids=batch.ids, attention_mask=batch.attention,
                                  position_ids=positions(batch.attention), use_cache=False)  # fmt: skip
    return out.last_hidden_state[:, -1].float().cpu()
