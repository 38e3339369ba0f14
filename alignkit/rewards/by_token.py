"""A reward for each token, read off a model that was fit to whole answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from alignkit.errors import RewardError
from alignkit.rewards.base import Judgement, Reward, unique_rows
from alignkit.rewards.model import RewardModel


class ByToken(Reward):
    """What each token adds to the score of a reward model with pooling "mean": its output there over the length.

    An explicit token-level reward without token labels: the score is the sum of its tokens, the end-of-sequence token
    included. (2402.00782 spreads a score by attention in the same spirit; here the head's own average does it.)
    """

    def __init__(self, model: RewardModel):
        if model.pooling != "mean":
            raise RewardError(f"ByToken: {model.card.name!r} reads its last token only, so the others add nothing; "
                              "fit it with pooling='mean'")  # fmt: skip
        self.model = model
        self.card = replace(model.card, name=f"{model.card.name} by token", granularity="token")

    @torch.no_grad()
    def judge(self, prompts: list, completions: list[str], batch_size: int = 512) -> Judgement:
        which, back = unique_rows(prompts, completions)
        known = self._read([prompts[i] for i in which], [completions[i] for i in which], batch_size)
        tokens = [known[k] for k in back]
        return Judgement(np.array([values.sum() for values in tokens]), tokens=tokens)

    def _read(self, prompts: list, completions: list[str], batch_size: int) -> list[np.ndarray]:
        if not completions:
            return []
        batch = self.model.codec.encode(prompts, completions)
        out: list[np.ndarray] = [np.zeros(0)] * len(batch)
        for part in batch.attention.sum(1).argsort().split(batch_size):
            rows = batch.rows(part)
            values = self.model.outputs_by_token(rows)[..., 0].double().cpu().numpy()
            for row, each, n in zip(part.tolist(), values, rows.mask.sum(1).tolist(), strict=True):
                out[row] = each[:n] / n
        return out
