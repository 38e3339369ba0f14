"""What a score must not depend on: the call, the other texts of the batch, the place in it. And what a score costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alignkit.checkup import findings as f
from alignkit.checkup.examination import ROUNDING, Examination, rounded, spread
from alignkit.checkup.findings import SERIOUS, WARN, Finding

ROWS = 16  # texts for these checks
PLACES = 8  # places of the batch a text is moved through


def _rows(exam: Examination, n: int = ROWS) -> np.ndarray:
    """Finite rows of different prompts first, spread over lengths."""
    order = exam.material.prompts_first(np.flatnonzero(np.isfinite(exam.scores)))[: 4 * n]
    lengths = [len(exam.material.completions[i]) for i in order]
    return spread(order[np.argsort(lengths, kind="stable")], n)


def check_determinism(exam: Examination) -> Iterator[Finding | dict]:
    """The same texts three times; sets `exam.noise`."""
    rows = _rows(exam)
    calls = np.stack([exam.ask(rows, whole=True) for _ in range(3)])
    noise = float(np.sqrt(np.nanmean(np.nanvar(calls, axis=0, ddof=1)))) if np.isfinite(calls).any() else 0.0
    if noise > ROUNDING * exam.size:
        exam.noise = noise
    yield {"noise_sd": rounded(exam.in_sd(noise)), "texts": len(rows)}
    if exam.noise:
        low, high = np.nanmin(calls, axis=0), np.nanmax(calls, axis=0)
        worst = int(np.nanargmax(high - low))
        yield Finding(
            "determinism.noise",
            exam.severity(noise, f.NOISE_STRONG),
            f"The same texts score differently from call to call: by {exam.in_words(noise)} (one sd of the noise).",
            "Fix the seed inside the reward, switch dropout off (model.eval()), or average several calls; a noisy "
            "reward teaches more slowly and can't be reproduced.",
            {"noise_sd": rounded(exam.in_sd(noise), 4), "n": len(rows)},
            exam.example(rows[worst], score_before=low[worst], score_after=high[worst]),
        )  # fmt: skip


def check_batch(exam: Examination) -> Iterator[Finding | dict]:
    """Alone, in a batch, in a shuffled batch, and beside a text that is much longer (padding)."""
    rows = _rows(exam)
    n, completions = len(rows), exam.material.texts(rows)[1]
    together = exam.ask(rows, whole=True)
    order = np.random.default_rng([exam.seed, 72]).permutation(n)
    shuffled = np.empty(n)
    shuffled[order] = exam.ask(rows[order], whole=True)
    longest = max(completions, key=len)
    settings = {
        "alone": np.concatenate([exam.ask(rows[[i]], whole=True) for i in range(n)]),
        "in another order": shuffled,
        "beside a longer text": exam.ask(np.append(rows, rows[0]), [*completions, f"{longest} {longest}"], True)[:n],
    }
    gaps = {name: np.abs(scores - together) for name, scores in settings.items()}
    worst = {name: float(np.nanmax(gap)) if np.isfinite(gap).any() else 0.0 for name, gap in gaps.items()}
    yield {**{name: rounded(exam.in_sd(gap)) for name, gap in worst.items()}, "texts": n}
    name = max(worst, key=worst.get)
    if worst[name] <= max(f.BATCH * exam.unit, 6 * exam.noise, ROUNDING * exam.size):
        return
    exam.by_batch = True
    row = int(np.nanargmax(gaps[name]))
    yield Finding(
        "batch.depends",
        exam.severity(worst[name], f.BATCH_STRONG),
        f"A score depends on what else is in the batch: {name}, one text moves by {exam.in_words(worst[name])} "
        f"({', '.join(f'{setting} {exam.in_words(gap)}' for setting, gap in worst.items())}).",
        "Score each text for itself: no normalizing over the batch, the right padding side, attention masks and "
        "position ids. If the reward ranks answers against each other on purpose, always hand it whole groups.",
        {"largest_shift": rounded(exam.in_sd(worst[name]), 4), "setting": name, "n": n},
        exam.example(rows[row], score_before=together[row], score_after=settings[name][row]),
    )  # fmt: skip


def check_position(exam: Examination) -> Iterator[Finding | dict]:
    """Each text in each place: of a batch of different prompts, and among the answers to one prompt."""
    blocks, group = {"the batch": _rows(exam, PLACES)[None, :]}, exam.material.group
    sizes = np.bincount(group)
    k = int(min(4, sizes.max()))
    if k > 1:
        chosen = np.flatnonzero(sizes >= k)[:4]
        blocks["the prompt's answers"] = np.stack([np.flatnonzero(group == g)[:k] for g in chosen])
    effects = {where: _place_effects(exam, block) for where, block in blocks.items()}
    largest = {where: np.nanmax(np.abs(effect)) for where, effect in effects.items() if np.isfinite(effect).any()}
    yield {where: [rounded(shift) for shift in exam.in_sd(effect)] for where, effect in effects.items()}
    if not largest:
        return
    where = max(largest, key=largest.get)
    limit = 6 * exam.noise / np.sqrt(len(effects[where]))
    if largest[where] <= max(f.BATCH * exam.unit, limit, ROUNDING * exam.size):
        return
    effect = effects[where]
    place = int(np.nanargmax(effect))
    yield Finding(
        "position.favored",
        exam.severity(largest[where], f.BATCH_STRONG),
        f"Place matters: the same texts score {exam.in_words(float(effect[place]))} relative to their own mean when "
        f"they stand at place {place + 1} of {len(effect)} in {where}.",
        "Score each text for itself; a judge that reads several answers should read them in both orders, and the two "
        "readings be averaged.",
        {"effect_by_place": [round(float(x), 4) for x in exam.in_sd(effect)], "where": where},
    )


def _place_effects(exam: Examination, blocks: np.ndarray) -> np.ndarray:
    """Mean score of a text at each place of its block minus its mean over places; all blocks are one batch."""
    width = blocks.shape[1]
    places, seen = np.arange(width), np.full((len(blocks), width, width), np.nan)  # block, text, place
    for turn in range(width):
        scores = exam.ask(np.roll(blocks, turn, axis=1).ravel(), whole=True)
        seen[:, (places - turn) % width, places] = scores.reshape(blocks.shape)
    return np.nanmean(seen - np.nanmean(seen, axis=2, keepdims=True), axis=(0, 1))


def check_speed(exam: Examination) -> Iterator[Finding | dict]:
    """Seconds per completion over the calls so far."""
    reward, rate = exam.reward, exam.reward.rate
    yield {"seconds_per_completion": round(rate, 6), "budget": exam.budget, "completions": reward.completions,
           "load_seconds": round(reward.load_seconds, 2)}  # fmt: skip
    if rate > exam.budget:
        yield Finding(
            "speed.slow",
            SERIOUS if rate > f.FAR_OVER_BUDGET * exam.budget else WARN,
            f"{rate:.3g} s per completion; the budget is {exam.budget:g} s: an update on 256 completions waits "
            f"{256 * rate:.0f} s for its reward.",
            "Score in larger batches, cache scores of repeated texts, take a smaller model, or allow more (--budget).",
            {"seconds_per_completion": round(rate, 6), "n": reward.completions},
        )
