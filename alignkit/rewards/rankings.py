"""A Plackett-Luce reward model, fit to rankings of several completions, or to the choice of the best among them."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import DataError
from alignkit.policy import Policy
from alignkit.rewards.data import check_columns, check_texts
from alignkit.rewards.losses import plackett_luce_loss
from alignkit.rewards.model import RewardModel


class PlackettLuce(RewardModel):
    """Fit to whole rankings; scores are the log-worths of the Plackett-Luce model, up to a constant for each prompt."""

    kind = {"name": "plackett-luce", "format": "scalar", "granularity": "response", "source": "2301.11270"}

    @classmethod
    def fit(
        cls,
        rankings: Dataset,
        backbone: Policy | str,
        top: int | None = None,
        pooling: str = "mean",
        seed: int = 0,
        batch_size: int = 16,
        **options,
    ) -> PlackettLuce:
        """Fit to `prompt/ranked`; `ranked` lists the completions best first, at least two a row.

        Only the first `top` places count (1: which one is best, the rest in no order). Further options as in
        `RewardModel.train`; batch_size counts rankings.
        """
        check_columns(rankings, ["prompt", "ranked"], "rankings")
        check_texts(rankings)
        prompts, texts, first = [], [], [0]
        for row, (prompt, ranked) in enumerate(zip(rankings["prompt"], rankings["ranked"], strict=True)):
            if not isinstance(ranked, list) or len(ranked) < 2 or not all(isinstance(text, str) for text in ranked):
                raise DataError(f"row {row}: 'ranked' must list at least two texts, best first; it is {ranked!r:.80}")
            prompts += [prompt] * len(ranked)
            texts += ranked
            first.append(len(texts))
        reward = cls.new(backbone, seed, pooling)
        batch = reward.codec.encode(prompts, texts)
        start = torch.tensor(first)
        size = start.diff()
        width = batch.attention.sum(1)
        lengths = torch.stack([width[a:b].max() for a, b in zip(first[:-1], first[1:], strict=True)])

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            rows = torch.cat([torch.arange(start[i], start[i + 1]) for i in index])
            scores = reward.forward(batch.rows(rows)).split(size[index].tolist())
            losses = torch.stack([plackett_luce_loss(s[None], top)[0] for s in scores])
            return losses.mean(), {"accuracy": sum(s.argmax().item() == 0 for s in scores) / len(index)}

        return reward.train(loss, lengths, batch_size=batch_size, seed=seed, **options)
