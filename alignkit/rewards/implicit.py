"""The reward that lives in a policy: how much more likely it makes a completion than the reference does."""

from __future__ import annotations

import numpy as np
import torch

from alignkit.errors import RewardError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, unique_rows
from alignkit.taxonomy import RewardCard

CREDIT = ("response", "token")
LENGTH = ("sum", "mean")


class ImplicitReward(Reward):
    """r(x, y) = beta * log(pi(y|x) / ref(y|x)), up to a constant for each prompt (DPO, 2305.18290, eq. 5).

    The ratio of two autoregressive policies is a sum over tokens: with `granularity` "token" the judgement also says
    what each token adds (2404.12358), the end-of-sequence token included; the credits sum to the score. An empty
    completion is that one token, so it has a score as well.

    `length` "mean" divides by the number of tokens. Without a `reference` the reward is beta * log pi(y|x); that with
    the mean is SimPO's reward (2405.14734, eq. 4).
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        beta: float = 0.2,
        granularity: str = "response",
        length: str = "sum",
        name: str | None = None,
    ):
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
            name=name or f"implicit:{policy.name}",
            construction_basis="data-driven",
            format="scalar",
            expression="implicit",
            granularity=granularity,
            source="2405.14734" if free else "2404.12358" if granularity == "token" else "2305.18290",
            notes="reference-free" if free else "",
        )

    def judge(self, prompts: list, completions: list[str], batch_size: int = 512) -> Judgement:
        which, back = unique_rows(prompts, completions)
        known = self._token_credit([prompts[i] for i in which], [completions[i] for i in which], batch_size)
        credit = [known[k] for k in back]
        scores = np.array([tokens.sum() for tokens in credit])
        return Judgement(scores, tokens=credit if self.card.granularity == "token" else None)

    @torch.no_grad()
    def _token_credit(self, prompts: list, completions: list[str], batch_size: int) -> list[np.ndarray]:
        """What each token adds to the score, one float64 array a completion."""
        if not completions:
            return []
        batch = self.policy.encode(prompts, completions)
        credit: list[np.ndarray] = [np.zeros(0)] * len(batch)
        for part in batch.attention.sum(1).argsort().split(batch_size):  # little padding in each part
            rows = batch.rows(part)
            logp = self.policy.token_logprobs(rows).double()
            if self.reference is not None:
                logp -= self.reference.token_logprobs(rows).double()
            for i, values, n in zip(part.tolist(), logp.cpu().numpy(), rows.mask.sum(1).tolist(), strict=True):
                credit[i] = self.beta * values[:n] / (n if self.length == "mean" else 1)
        return credit
