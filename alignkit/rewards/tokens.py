"""Rewards by token: what each token adds to a reward model's score, and the reward that lives in a policy itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import RewardError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, unique_rows
from alignkit.rewards.model import RewardModel, parts_of
from alignkit.taxonomy import RewardCard
from alignkit.tokens import Batch

CREDIT = ("response", "token")
LENGTH = ("sum", "mean")


def as_sampled(policy: Policy, completions: list[str], ids: list[list[int]] | None) -> list:
    """Each completion as the token ids that were sampled, where this tokenizer reads them as that text; else the text.

    A tokenizer may cut a text otherwise than it was sampled, and credit would then lie on the wrong tokens.
    """
    if ids is None:
        return completions
    read = policy.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [list(own) if text.strip() == said.strip() else text
            for own, said, text in zip(ids, read, completions, strict=True)]  # fmt: skip


@torch.no_grad()
def credit_by_token(
    reader: Policy | RewardModel, values_of: Callable[[Batch], Tensor], prompts: list, completions: list, rows: int
) -> list[np.ndarray]:
    """`values_of` a token batch, (n, T), for each token of each completion: N float64 arrays."""
    which, back = unique_rows(prompts, completions)
    known: list[np.ndarray] = [np.zeros(0)] * len(which)
    if which:
        batch = reader.encode([prompts[i] for i in which], [completions[i] for i in which])
        for part in parts_of(batch, reader.model, rows):
            read = batch.rows(part)
            values = values_of(read).double().cpu().numpy()
            for row, each, n in zip(part.tolist(), values, read.mask.sum(1).tolist(), strict=True):
                known[row] = each[:n]
    return [known[k] for k in back]


class ByToken(Reward):
    """What each token adds to the score of a reward model with pooling "mean": its output there over the length.

    An explicit token-level reward without token labels: the score is the sum of its tokens, the end-of-sequence token
    included. (2402.00782 spreads a score by attention in the same spirit; here the head's own average does it.)
    With `completion_ids`, as in training, the tokens are those that were sampled.
    """

    def __init__(self, model: RewardModel):
        if model.pooling != "mean":
            raise RewardError(f"ByToken: {model.card.name!r} reads its last token only, so the others add nothing; "
                              "fit it with pooling='mean'")  # fmt: skip
        self.model = model
        self.card = replace(model.card, name=f"{model.card.name} by token", granularity="token")

    def judge(
        self, prompts: list, completions: list[str], completion_ids: list | None = None, batch_size: int = 512
    ) -> Judgement:
        said = as_sampled(self.model.backbone, completions, completion_ids)
        first = lambda rows: self.model.outputs_by_token(rows)[..., 0]  # noqa: E731
        outputs = credit_by_token(self.model, first, prompts, said, batch_size)
        tokens = [values / len(values) for values in outputs]
        return Judgement(np.array([values.sum() for values in tokens]), tokens=tokens)


class ImplicitReward(Reward):
    """r(x, y) = beta * log(pi(y|x) / ref(y|x)), up to a constant for each prompt (DPO, 2305.18290, eq. 5).

    The ratio of two autoregressive policies is a sum over tokens: with `granularity` "token" the judgement also says
    what each token adds (2404.12358), the end-of-sequence token included; the credits sum to the score. An empty
    completion is that one token, so it has a score as well. With `completion_ids`, as in training, the tokens are those
    that were sampled.

    `length` "mean" divides by the number of tokens. Without a `reference` the reward is beta * log pi(y|x); that with
    the mean is SimPO's reward (2405.14734, eq. 4).
    """

    def __init__(
        self, policy: Policy, reference: Policy | None, beta: float = 0.2, granularity: str = "response",
        length: str = "sum", name: str | None = None,
    ):  # fmt: skip
        if not (beta > 0 and np.isfinite(beta)):
            raise RewardError(f"ImplicitReward: beta must be a positive number, not {beta}")
        for what, value, words in (("granularity", granularity, CREDIT), ("length", length, LENGTH)):
            if value not in words:
                raise RewardError(f"ImplicitReward: {what} must be {' or '.join(map(repr, words))}, not {value!r}")
        if reference is not None and reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise RewardError(
                f"ImplicitReward: {policy.name!r} and {reference.name!r} have different vocabularies, so their "
                "probabilities of a token can't be compared; take the policy that training started from as reference"
            )
        self.policy, self.reference, self.beta, self.length = policy, reference, beta, length
        free = reference is None
        self.card = RewardCard(
            name=name or f"implicit:{policy.name}", construction_basis="data-driven", format="scalar",
            expression="implicit", granularity=granularity, notes="reference-free" if free else "",
            source="2405.14734" if free else "2404.12358" if granularity == "token" else "2305.18290",
        )  # fmt: skip

    def log_ratio(self, batch: Batch) -> Tensor:
        """log(pi / ref) of each token, shape (N, T), float64."""
        logp = self.policy.token_logprobs(batch).double()
        return logp if self.reference is None else logp - self.reference.token_logprobs(batch).double()

    def judge(
        self, prompts: list, completions: list[str], completion_ids: list | None = None, batch_size: int = 512
    ) -> Judgement:
        said = as_sampled(self.policy, completions, completion_ids)
        ratios = credit_by_token(self.policy, self.log_ratio, prompts, said, batch_size)
        credit = [self.beta * values / (len(values) if self.length == "mean" else 1) for values in ratios]
        scores = np.array([tokens.sum() for tokens in credit])
        return Judgement(scores, tokens=credit if self.card.granularity == "token" else None)
