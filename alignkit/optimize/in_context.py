"""In-context alignment: a principle and demonstrations in front of the prompt, and no update (URIAL, 2312.01552)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignkit.errors import AlignkitError, ContextError
from alignkit.policy import Policy, Prompt


class InContext(Policy):
    """The policy as it answers after `principle` and `demonstrations`: pi(y | context, x). The model is shared.

    Prompts stay bare, so that rewards, best-of-n and charts take this policy like any other. Text is laid out as in
    packed pretraining, every part ended by the end-of-sequence token; for messages the principle is the system's turn
    and each demonstration one of the user and one of the assistant.

    `room`: how many tokens prompt and completion may need; ContextError if the context leaves fewer.
    """

    def __init__(
        self, policy: Policy, demonstrations: Sequence[tuple[str, str]] = (), principle: str = "", room: int = 64
    ):
        self.share(policy, f"{policy.name} + context")
        for row, shown in enumerate(demonstrations):
            if len(shown) != 2 or not all(isinstance(text, str) and text.strip() for text in shown):
                raise AlignkitError(f"demonstration {row} must be a prompt and its answer, both with text: {shown!r}")
        if not demonstrations and not principle.strip():
            raise AlignkitError("in-context alignment needs demonstrations, a principle, or both; neither was given")
        self.demonstrations, self.principle = [tuple(d) for d in demonstrations], principle.strip()
        used = len(self.prompt_ids(""))
        if used + room > self.context:
            raise ContextError(
                f"{len(self.demonstrations)} demonstrations and a principle of {len(self.principle.split())} words "
                f"take {used} tokens; with {room} for prompt and answer that exceeds the context of {self.context} "
                f"tokens of {policy.name!r}. Show fewer or shorter ones."
            )

    def as_read(self, prompt: Prompt) -> Prompt:
        """The context followed by the prompt."""
        if isinstance(prompt, str):
            parts = [self.principle] * bool(self.principle) + [f"{q} {a}" for q, a in self.demonstrations]
            return f" {self.tokenizer.eos_token} ".join([*parts, prompt])
        turns = [{"role": "system", "content": self.principle}] * bool(self.principle)
        for asked, answer in self.demonstrations:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return [*turns, *prompt]


def shuffled_answers(demonstrations: Sequence[tuple[str, str]], seed: int = 0) -> list[tuple[str, str]]:
    """The same prompts and the same answers, no answer under its own prompt: the control for what the answers *say*.

    At least two demonstrations are needed.
    """
    n = len(demonstrations)
    if n < 2:
        raise AlignkitError(f"to move answers to other prompts at least two demonstrations are needed, not {n}")
    order = np.random.default_rng(seed).permutation(n)
    moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [(demonstrations[i][0], demonstrations[moved[i]][1]) for i in range(n)]
