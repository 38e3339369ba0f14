"""Better answers without changing the policy: best-of-n, and revision by a critique."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.reader import plain_prompts
from alignkit.rewards.verdicts import before_sentence, read_faults, without_sentences


def best_of_n(policy: Policy, prompts: list, reward: Reward | Callable, n: int, seed: int = 0, **options) -> list[str]:
    """For each prompt, the completion with the highest reward among n samples; ties go to a random one of them."""
    if n < 1:
        raise AlignkitError(f"best_of_n: n must be at least 1, not {n}")
    rollout = policy.rollout(prompts, n, seed=seed, **options)
    scores = as_reward(reward)(rollout.prompts, rollout.completions).scores.reshape(len(prompts), n)
    tie_break = np.random.default_rng([seed, 5]).random(scores.shape)
    best = np.lexsort((tie_break, scores), axis=1)[:, -1]
    return [rollout.completions[i * n + k] for i, k in enumerate(best)]


MENDS = ("resample", "drop")


def revise(
    policy: Policy, prompts: list[str], judge: Reward, n: int, mend: str = "resample", seed: int = 0,
    max_new_tokens: int = 48,
) -> list[list[str]]:  # fmt: skip
    """n versions of an answer to each prompt, in the order they came, guided by the judge's critiques (2303.17651).

    "resample": of the versions so far, the best by the judge's score is kept up to the first sentence that the critique
    finds fault with, and the policy writes on from there; without a fault, or where there is no room, it starts anew.
    "drop": each version is a fresh sample without the sentences found fault with (all of it, if none would remain).
    Each version costs one sample, as in best-of-n; the judge reads all of them.
    """
    if n < 1 or mend not in MENDS:
        raise AlignkitError(f"revise: n must be at least 1 and mend one of {', '.join(MENDS)}, not {n} and {mend!r}")
    prompts, versions = plain_prompts(prompts), [[] for _ in prompts]
    best, kept = np.full(len(prompts), -np.inf), [""] * len(prompts)
    for round_ in range(n):
        start = [k if _fits(policy, p, k, max_new_tokens) else "" for p, k in zip(prompts, kept, strict=True)]
        asked = [f"{p} {s}".strip() for p, s in zip(prompts, start, strict=True)]
        ends = policy.rollout(asked, 1, seed=seed + 7919 * round_, max_new_tokens=max_new_tokens).completions
        texts = [f"{s} {e}".strip() for s, e in zip(start, ends, strict=True)]
        if mend == "drop":
            places = [[place for place, _ in faults] for faults in _faults(judge, prompts, texts)[0]]
            texts = [without_sentences(t, p) or t for t, p in zip(texts, places, strict=True)]
        else:
            found, scores = _faults(judge, prompts, texts)
            for i in np.flatnonzero(scores > best):
                best[i], kept[i] = scores[i], before_sentence(texts[i], found[i][0][0]) if found[i] else ""
        for mine, text in zip(versions, texts, strict=True):
            mine.append(text)
    return versions


def _faults(judge: Reward, prompts: list[str], texts: list[str]) -> tuple[list[list[tuple[int, str]]], np.ndarray]:
    """Place and name of the faults the judge finds in each text (none where its critique can't be read), and scores."""
    said = judge(prompts, texts)
    if said.critiques is None:
        raise AlignkitError(f"revise needs a reward that writes critiques; {judge.card.name!r} gives none")
    return [read_faults(critique) or [] for critique in said.critiques], said.scores


def _fits(policy: Policy, prompt: str, start: str, more: int) -> bool:
    return len(policy.prompt_ids(f"{prompt} {start}")) + more <= policy.context
