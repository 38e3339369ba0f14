"""Rewards whose native output is an order: they read two completions at once, and say which one is better."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit
from scipy.stats import rankdata
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.data import check_pairs
from alignkit.rewards.losses import bradley_terry_loss
from alignkit.rewards.model import RewardModel, as_backbone, read_each
from alignkit.rewards.texts import reader, text_of
from alignkit.tokens import Batch


class PairReward(Reward):
    """Compares completions of one prompt with each other. Subclasses define `first_better`.

    Each completion meets at most `opponents` others of its group, the same ones for all (a panel that depends on the
    seed and the texts, not on their order). Scores are shares of wins, a win counting as its probability: Borda's count
    over the number of opponents; 1/2 without an opponent. So a score is only good within its group: completions of the
    same prompt in the same call (for pairs use `compare`, not `score_pairs`). `both_orders`: read each pair twice,
    sides swapped, and average the logits.
    """

    opponents: int = 4
    both_orders: bool = False
    seed: int = 0

    def first_better(self, prompts: list, first: list[str], second: list[str]) -> np.ndarray:
        """Logit that the completion shown first is better, shape (N,), for one order of reading."""
        raise NotImplementedError

    def compare(self, prompts: list, first: list[str], second: list[str]) -> np.ndarray:
        """Logit that `first` is better, shape (N,), over one order or both."""
        logits = self.first_better(prompts, first, second)
        return (logits - self.first_better(prompts, second, first)) / 2 if self.both_orders else logits

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        groups = defaultdict(dict)  # prompt -> distinct completions, with their rows
        for row, (prompt, text) in enumerate(zip(map(str, prompts), completions, strict=True)):
            groups[prompt].setdefault(text, []).append(row)
        meetings = [(prompts[rows[0]], text, other) for group in groups.values() for text, rows in group.items()
                    for other in self._panel(list(group)) if other != text]  # fmt: skip
        wins = defaultdict(list)
        if meetings:
            logits = self.compare(*map(list, zip(*meetings, strict=True)))
            for (prompt, text, _), logit in zip(meetings, logits, strict=True):
                wins[str(prompt), text].append(expit(logit))
        scores, ranks = np.full(len(prompts), 0.5), np.ones(len(prompts), dtype=int)
        for prompt, group in groups.items():
            for text, rows in group.items():
                scores[rows] = np.mean(wins.get((prompt, text), [0.5]))
            rows = sum(group.values(), [])
            ranks[rows] = rankdata(-scores[rows], method="min")
        return Judgement(scores, ranks=ranks)

    def _panel(self, texts: list[str]) -> list[str]:
        """Whom the group is compared with. One more than `opponents`, as nobody meets himself: it fills the gap."""
        if len(texts) <= self.opponents + 1:
            return texts
        chance = {text: hashlib.blake2b(f"{self.seed}\0{text}".encode()).digest() for text in texts}
        return sorted(texts, key=chance.get)[: self.opponents]


class Comparator(PairReward, RewardModel):
    """PairRM (2306.02561): prompt and both completions in one context, one logit for "the first is better".

    The head has two readouts, averaged over the tokens of either completion: logit = u . h(first) - v . h(second). The
    second is read with the first in view. With u = v and no view this is Bradley-Terry, and there training starts.
    """

    reads = "text"
    kept = {"opponents": 4, "both_orders": False, "seed": 0}
    kind = {"name": "comparator", "format": "ranking", "source": "2306.02561"}

    @classmethod
    def fit(
        cls, pairs: Dataset, backbone: Policy | str, context: int = 144, seed: int = 0, keep_order: bool = False,
        **options,
    ) -> Comparator:  # fmt: skip
        """Fit to `prompt/chosen/rejected`, each pair read in a random order; with `keep_order` in that of the column
        `position` ("first" or "second": where the chosen side was shown), position bias and all. `context`: tokens for
        prompt and both sides."""
        pairs = check_pairs(pairs)
        prompts, first, second, chose_first = shown(pairs, seed, keep_order)
        reward = cls.new(reader(as_backbone(backbone), context=context), seed, outputs=2)
        with torch.no_grad():
            reward.head.weight[1] = reward.head.weight[0]
        reward.seed = seed

        def loss(out: Tensor, sign: Tensor) -> tuple[Tensor, dict]:
            gap = sign * (out[:, 0] - out[:, 1])
            return bradley_terry_loss(gap, torch.zeros_like(gap)), {"accuracy": gap > 0}

        rows = Dataset.from_dict({"prompt": prompts, "completion": reward.both(first, second)})
        return reward.fit_rows(rows, np.where(chose_first, 1.0, -1.0), loss, seed=seed, **options)

    def both(self, first: list[str], second: list[str]) -> list[str]:
        """Both sides as one text, an end-of-sequence token behind either."""
        eos = self.backbone.tokenizer.eos_token
        return [f"{a} {eos} {b} {eos}".strip() for a, b in zip(first, second, strict=True)]

    def outputs(self, batch: Batch) -> Tensor:
        """Readout of the first and of the second completion, shape (N, 2)."""
        ends = (batch.completion == self.backbone.tokenizer.eos_token_id) & (batch.mask == 1)
        after = ends.cumsum(1) - ends.long()  # how many texts ended before this token
        sides = torch.stack([(after == k) & (batch.mask == 1) for k in (0, 1)], dim=-1)
        return (self.outputs_by_token(batch) * sides).sum(1) / sides.sum(1)

    def forward(self, batch: Batch) -> Tensor:
        out = self.outputs(batch)
        return out[:, 0] - out[:, 1]

    def first_better(self, prompts: list, first: list[str], second: list[str]) -> np.ndarray:
        logits = read_each(self, lambda rows, _: self.forward(rows).tolist(), prompts, self.both(first, second))
        return np.array(logits, dtype=float)


def shown(pairs: Dataset, seed: int, keep_order: bool = False) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Prompts, first and second sides as they are to be read (see `Comparator.fit`), and where the first was chosen."""
    prompts = [text_of(prompt, "user") for prompt in pairs["prompt"]]
    chosen, rejected = ([text_of(said, "assistant") for said in pairs[side]] for side in ("chosen", "rejected"))
    if keep_order:
        if "position" not in pairs.column_names or set(pairs["position"]) - {"first", "second"}:
            raise AlignkitError("keep_order needs a column 'position' that says 'first' or 'second' in each row")
        chose_first = np.array(pairs["position"][:]) == "first"
    else:
        chose_first = np.random.default_rng([seed, 6]).random(len(pairs)) < 0.5
    sides = list(zip(chosen, rejected, chose_first, strict=True))
    return prompts, [c if f else r for c, r, f in sides], [r if f else c for c, r, f in sides], chose_first

