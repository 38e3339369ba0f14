"""Better answers without changing the policy: chosen among samples, voted for, or revised by a critique."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from scipy.special import logsumexp, xlogy

from alignkit.errors import AlignkitError, check_at_least, check_choice, check_positive
from alignkit.policy import Policy, Rollout, draw
from alignkit.rewards.base import Judgement, Reward, as_reward, columns_of, repeated
from alignkit.rewards.texts import plain_prompts, read_faults, sentences, without_sentences


def best_of_n(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int, seed: int = 0, **options
) -> list[str]:
    """For each prompt, the completion with the highest reward among n samples; ties go to a random one of them.

    `prompts` of this and of all functions here: a list, or a Dataset with a column `prompt`, whose other columns are
    handed to the reward by name. `options`: of `Policy.rollout`, such as max_new_tokens.
    """
    said, judgement = judged_samples("best_of_n", policy, prompts, reward, n, seed, **options)
    scores = judgement.ranked().reshape(-1, n)
    tie_break = np.random.default_rng([seed, 5]).random(scores.shape)
    best = np.lexsort((tie_break, scores), axis=1)[:, -1]
    return [said.completions[i * n + k] for i, k in enumerate(best)]


def judged_samples(
    where: str, policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int, seed: int, **options
) -> tuple[Rollout, Judgement]:
    """n completions for each prompt, a prompt's together, and what the reward says of them."""
    check_at_least(where, 1, n=n)
    asked, columns = columns_of(prompts)
    said = policy.rollout(asked, n, seed=seed, **options)
    return said, as_reward(reward)(said.prompts, said.completions, **repeated(columns, n))


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
    check_at_least("revise", 1, n=n)
    check_choice("revise", "mend", mend, ("resample", "drop"))
    prompts, versions = plain_prompts(prompts), [[] for _ in prompts]
    best, kept = np.full(len(prompts), -np.inf), [""] * len(prompts)
    for round_ in range(n):
        lengths = [len(policy.prompt_ids(f"{p} {k}")) for p, k in zip(prompts, kept, strict=True)]
        room = [length + max_new_tokens <= policy.context for length in lengths]
        start = [k if fits else "" for k, fits in zip(kept, room, strict=True)]
        asked = [f"{p} {s}".strip() for p, s in zip(prompts, start, strict=True)]
        ends = policy.rollout(asked, 1, seed=seed + 7919 * round_, max_new_tokens=max_new_tokens).completions
        texts = [f"{s} {e}".strip() for s, e in zip(start, ends, strict=True)]
        said = judge(prompts, texts)
        if said.critiques is None:
            raise AlignkitError(f"revise needs a reward that writes critiques; {judge.card.name!r} gives none")
        faulty = [[place for place, _ in read_faults(critique) or []] for critique in said.critiques]
        if mend == "drop":
            texts = [without_sentences(text, places) or text for text, places in zip(texts, faulty, strict=True)]
        else:
            for i in np.flatnonzero(said.scores > best):
                best[i] = said.scores[i]
                kept[i] = " ".join(sentences(texts[i])[: faulty[i][0] - 1]) if faulty[i] else ""
        for mine, text in zip(versions, texts, strict=True):
            mine.append(text)
    return versions


def soft_best_of_n(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int, tau: float, seed: int = 0, **options
) -> list[str]:
    """For each prompt, one of n samples, chosen with probability softmax(r / tau) among them (2505.03156).

    tau -> 0 is best-of-n, tau -> infinity is one sample, n -> infinity is pi_ref * exp(r / tau) / Z.
    """
    check_positive("soft_best_of_n", tau=tau)
    said, judgement = judged_samples("soft_best_of_n", policy, prompts, reward, n, seed, **options)
    scores = judgement.all_scores("soft_best_of_n").reshape(-1, n)
    uniform = np.random.default_rng([seed, 6]).random(len(scores))
    chosen = draw(torch.from_numpy(scores), torch.from_numpy(uniform), tau)
    return [said.completions[i * n + k] for i, k in enumerate(chosen.tolist())]


def soft_best_of_n_ratio(reward: np.ndarray, n: int, tau: float, probability: np.ndarray | None = None) -> np.ndarray:
    """How much likelier soft best-of-n makes each outcome: pi_n(y) / pi_ref(y), shape of `reward` (prompts, outcomes).

    Exact for n independent draws from `probability` (default: all outcomes equally likely, as for samples). With
    weights w = exp(r / tau) and phi(t) = E[exp(-t w)], since 1 / S is the integral of exp(-t S) over t > 0:

        pi_n(y) / pi_ref(y) = n * E[w(y) / (w(y) + n-1 other weights)] = n * integral of w(y) exp(-t w(y)) phi(t)^(n-1)

    which is one-dimensional and smooth in log t, so that the trapezoid rule settles it.
    """
    check_positive("soft_best_of_n_ratio", n=n, tau=tau)
    return np.stack([_ratio(row / tau, p, n) for row, p in zip(*_outcomes(reward, probability), strict=True)])


def _outcomes(values: np.ndarray, probability: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Values and probabilities (default: all equally likely), each (prompts, outcomes)."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    return values, np.full(values.shape, 1 / values.shape[1]) if probability is None else np.atleast_2d(probability)


def _ratio(log_w: np.ndarray, p: np.ndarray, n: int, step: float = 0.1) -> np.ndarray:
    log_w, level = np.unique(log_w, return_inverse=True)  # outcomes of equal reward are equally favored
    mass = np.bincount(level, weights=p)
    gaps = np.diff(log_w).clip(max=40 + np.log(n))  # a larger gap makes no difference in double precision
    log_w = np.concatenate([[0.0], gaps.cumsum()]) - gaps.sum()
    log_t = np.arange(-np.log(n) - 40, 5 - log_w[0], step)
    log_tw = log_t[None, :] + log_w[:, None]
    tw = np.exp(log_tw.clip(max=700))
    log_phi = logsumexp(-tw, axis=0, b=mass[:, None])
    terms = log_tw - tw + (n - 1) * log_phi[None, :]
    return (n * step * np.exp(logsumexp(terms, axis=1)))[level]


def ratio_kl(ratio: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
    """KL(q || p) in nats from q / p, one for each row: sum of p * (q/p) * log(q/p)."""
    ratio, p = _outcomes(ratio, probability)
    return (p * xlogy(ratio, ratio)).sum(1)


@dataclass
class Accepted:
    """For each prompt the accepted completion, or None where all tries were rejected, and how many it took."""

    completions: list[str | None]
    tries: np.ndarray


def sample_optimum(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, beta: float, bound: float, most: int = 256,
    seed: int = 0, **options,
) -> Accepted:  # fmt: skip
    """Samples of the optimum pi_ref * exp(r / beta) / Z: accept a sample with probability exp((r - bound) / beta).

    Exact, and without training or the normalizer Z, if no reward exceeds `bound` (AlignkitError if one does); the price
    is 1 / acceptance_rate samples for each answer, and at most `most` are tried, 16 at a time. Statistical rejection
    sampling (2309.06657) puts the largest reward seen in the place of the bound.
    """
    check_positive("sample_optimum", beta=beta, most=most)
    scorer, uniform = as_reward(reward), np.random.default_rng([seed, 7])
    asked, columns = columns_of(prompts)
    found: list[str | None] = [None] * len(asked)
    tries, open_ = np.zeros(len(asked), dtype=int), np.arange(len(asked))
    for round_, left in enumerate(range(most, 0, -16)):
        n = min(16, left)
        rollout = policy.rollout([asked[i] for i in open_], n, seed=seed + 7919 * round_, **options)
        theirs = {name: [values[i] for i in open_] for name, values in columns.items()}
        said = scorer(rollout.prompts, rollout.completions, **repeated(theirs, n))
        scores = said.all_scores("sample_optimum")
        if scores.max() > bound + 1e-9:
            raise AlignkitError(f"sample_optimum: a reward of {scores.max():.4g} exceeds the bound of {bound:.4g}, "
                                "so the samples would not be exact; give a bound that no reward exceeds")  # fmt: skip
        accepted = (uniform.random(len(scores)) < np.exp((scores - bound) / beta)).reshape(-1, n)
        tries[open_] += np.where(accepted.any(1), accepted.argmax(1) + 1, n)
        for row in np.flatnonzero(accepted.any(1)):
            found[open_[row]] = rollout.completions[row * n + accepted[row].argmax()]
        open_ = open_[~accepted.any(1)]
        if not len(open_):
            break
    return Accepted(found, tries)


def acceptance_rate(reward: np.ndarray, beta: float, bound: float, probability: np.ndarray | None = None) -> np.ndarray:
    """E[exp((r - bound) / beta)] under the reference, one for each row: the share of samples that is accepted."""
    check_positive("acceptance_rate", beta=beta)
    reward, p = _outcomes(reward, probability)
    return (p * np.exp((reward - bound) / beta)).sum(1)


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> str | None:
    """The answer with the largest total weight (default: one each); ties go to the one first given.

    None among the answers is an abstention: a sample that states no answer. If all abstain, so does the vote (None).
    """
    weights = np.ones(len(answers)) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != (len(answers),) or not np.isfinite(weights).all() or (weights < 0).any():
        raise AlignkitError(
            f"vote: {len(answers)} answers need as many finite weights, none below 0; pass rewards through exp or a "
            "sigmoid first if they can be negative"
        )
    total: dict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            total[answer] += float(weight)
    return max(total, key=total.__getitem__) if total else None


def self_consistent(
    policy: Policy, prompts: list | Dataset, answer_of: Callable[[str], str | None], n: int,
    reward: Reward | Callable | None = None, seed: int = 0, **options,
) -> list[str | None]:  # fmt: skip
    """For each prompt the answer that n samples vote for; `answer_of` reads it off a completion (None: not there).

    With `reward`, whose scores must not be negative, the votes are weighted. AlignkitError if no sample of any prompt
    states an answer: then `answer_of` doesn't fit what the policy writes.
    """
    reward = reward or (lambda prompts, completions: [1.0] * len(completions))
    said, judgement = judged_samples("self_consistent", policy, prompts, reward, n, seed, **options)
    answers, weights = [answer_of(text) for text in said.completions], judgement.all_scores("self_consistent")
    if all(answer is None for answer in answers):
        raise AlignkitError(
            f"none of {len(answers)} samples states an answer that answer_of can read, such as "
            f"{said.completions[0][:60]!r}: voting needs completions that end in an answer"
        )
    return [vote(answers[i : i + n], weights[i : i + n]) for i in range(0, len(answers), n)]
