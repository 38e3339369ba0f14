"""Rewards by token: what each token adds to a reward model's score, and the reward that lives in a policy itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from alignkit.errors import RewardError, check_choice, check_positive
from alignkit.policy import Policy, check_same_vocabulary
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.model import RewardModel, read_each
from alignkit.taxonomy import RewardCard
from alignkit.tokens import Batch


def by_token(
    reader: Policy | RewardModel, values_of: Callable[[Batch], Tensor], prompts: list, completions: list[str],
    ids: list[list[int]] | None,
) -> list[np.ndarray]:  # fmt: skip
    """`values_of` a token batch, (n, T), for each token of each completion: N float64 arrays.

    Completions are read as the `ids` that were sampled, where this tokenizer reads these as that text: it may cut it
    otherwise, and credit would then lie on the wrong tokens.
    """
    if ids is not None:
        read = getattr(reader, "backbone", reader).tokenizer.batch_decode(ids, skip_special_tokens=True)
        completions = [list(own) if text.strip() == said.strip() else text
                       for own, said, text in zip(ids, read, completions, strict=True)]  # fmt: skip

    def without_padding(rows: Batch, _) -> list[np.ndarray]:
        values, lengths = values_of(rows).double().cpu().numpy(), rows.mask.sum(1).tolist()
        return [row[:n] for row, n in zip(values, lengths, strict=True)]

    return read_each(reader, without_padding, prompts, completions)


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

    def judge(self, prompts: list, completions: list[str], completion_ids: list | None = None) -> Judgement:
        model = self.model
        outputs = by_token(
            model, lambda rows: model.outputs_by_token(rows)[..., 0], prompts, completions, completion_ids
        )
        tokens = [values / len(values) for values in outputs]
        return Judgement(np.array([values.sum() for values in tokens]), tokens=tokens)


class ImplicitReward(Reward):
    """r(x, y) = beta * log(pi(y|x) / ref(y|x)), up to a constant for each prompt (DPO, 2305.18290, eq. 5).

    The ratio of two autoregressive policies is a sum over tokens: with `granularity` "token" the judgement also says
    what each token adds (2404.12358), the end-of-sequence token included, which is all there is of an empty completion.
    With `completion_ids`, as in training, the tokens are those that were sampled.

    `length` "mean" divides by the number of tokens. Without a `reference` the reward is beta * log pi(y|x); that with
    the mean is SimPO's reward (2405.14734, eq. 4).
    """

    def __init__(
        self, policy: Policy, reference: Policy | None, beta: float = 0.2, granularity: str = "response",
        length: str = "sum",
    ):  # fmt: skip
        check_positive("ImplicitReward", beta=beta)
        check_choice("ImplicitReward", "granularity", granularity, ("response", "token"))
        check_choice("ImplicitReward", "length", length, ("sum", "mean"))
        if reference is not None:
            check_same_vocabulary(policy, reference)
        self.policy, self.reference, self.beta, self.length = policy, reference, beta, length
        free = reference is None
        source = "2405.14734" if free else "2404.12358" if granularity == "token" else "2305.18290"
        self.card = RewardCard(f"implicit:{policy.name}", "data-driven", expression="implicit", source=source,
                               granularity=granularity, notes="reference-free" if free else "")  # fmt: skip

    def log_ratio(self, batch: Batch) -> Tensor:
        """log(pi / ref) of each token, shape (N, T), float64."""
        logp = self.policy.token_logprobs(batch).double()
        return logp if self.reference is None else logp - self.reference.token_logprobs(batch).double()

    def judge(self, prompts: list, completions: list[str], completion_ids: list | None = None) -> Judgement:
        ratios = by_token(self.policy, self.log_ratio, prompts, completions, completion_ids)
        credit = [self.beta * values / (len(values) if self.length == "mean" else 1) for values in ratios]
        scores = np.array([tokens.sum() for tokens in credit])
        return Judgement(scores, tokens=credit if self.card.granularity == "token" else None)
