"""Feedback in words: what is wrong and where, the answer mended, the answer written anew."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import SINGLE, People, ask, bits, one_by_one
from alignkit.worlds.base import World, require, write_fault


def critique(world: World, answers: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """One sentence that names a fault and its place: columns `prompt/completion/critique/place/fault/annotator`, cost.

    Of the faulty sentences the annotator names i with probability proportional to exp(g_i / temperature), where g_i is
    what its removal would gain them in utility; "nothing is wrong ." competes with a gain of 0. With probability 2
    error any sentence, or none, is given any fault. `place` counts from 1; 0, with fault "", is "nothing". An empty
    completion has no sentence to point at. Cost: one decision for each sentence read.
    """
    require(world, "saying what is wrong where", "segments", "faults", "fault_names")
    asked = ask(one_by_one(answers), SINGLE, annotator)
    rng = np.random.default_rng([seed, 7])
    said = [_criticize(world, *row, rng) for row in asked.each()]
    place, fault, sentences, told = (list(column) for column in zip(*said, strict=True)) if said else ([],) * 4
    columns = {"critique": list(map(write_fault, place, fault)), "place": place, "fault": fault}
    return asked.answered({**asked.about, **columns}, sentences, 1, told)


def _criticize(
    world: World, person: Annotator, prompt: str, text: str, own: dict, rng: np.random.Generator
) -> tuple[int, str, int, float]:
    """Place and fault; what it took (sentences read) and says (bits)."""
    found = world.faults(prompt, text)
    possible = [(0, ""), *((i, name) for i in range(1, len(found) + 1) for name in world.fault_names)]
    true = [(0, ""), *((i, name) for i, name in enumerate(found, 1) if name)]
    without = [text, *(without_sentence(world, text, i) for i, _ in true[1:])]
    worth = _utility(world, person, prompt, without, own) / person.temperature
    chance = np.exp(worth - worth.max())
    chance = dict(zip(true, chance / chance.sum(), strict=True))
    p = np.array([(1 - 2 * person.error) * chance.get(answer, 0.0) + 2 * person.error / len(possible)
                  for answer in possible])  # fmt: skip
    pick = rng.choice(len(possible), p=p / p.sum())
    return *possible[pick], max(1, len(found)), bits(np.log2(len(possible)), p[pick])


def _utility(world: World, person: Annotator, prompt: str, texts: list[str], own: dict) -> np.ndarray:
    """What these answers to one prompt are worth to the person; `own`: further columns of that row."""
    return person.utility(world, [prompt] * len(texts), texts, **{name: [v] * len(texts) for name, v in own.items()})


def without_sentence(world: World, completion: str, place: int) -> str:
    """The completion without its sentence number `place`, counted from 1; AlignkitError if there is none."""
    sentences = world.segments(completion)
    if not 1 <= place <= len(sentences):
        raise AlignkitError(f"no sentence {place} in a completion of {len(sentences)}: {completion[:60]!r}")
    return " ".join(sentences[: place - 1] + sentences[place:])


def correct(world: World, answers: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """Corrections: columns `prompt/chosen/rejected` (chosen = the completion mended), `place/fault/annotator` and cost.

    The annotator finds one fault as in `critique`, then mends that sentence: removes it, or puts a sentence of the
    ideal answer in its place, whichever is worth most to them. Completions with "nothing wrong" give no row; the
    reading they took is not counted.
    """
    require(world, "mending answers", "ideal")
    found, rows = critique(world, answers, annotator, seed), []
    for r, (person, prompt, text, own) in zip(found, ask(found, SINGLE, annotator).each(), strict=True):
        if r["place"]:
            edits = _edits(world, prompt, text, r["place"])
            best = edits[int(_utility(world, person, prompt, edits, own).argmax())]
            spent = {"decisions": r["decisions"] + 1, "bits": r["bits"] + np.log2(len(edits))}
            rows.append({**r, "chosen": best, "rejected": text, **spent})
    names = ("prompt", "chosen", "rejected", "place", "fault", "annotator")
    along = [name for name in found.column_names if name not in (*names, "completion", "critique")]
    return Dataset.from_dict({name: [r[name] for r in rows] for name in (*names, *along)})


def _edits(world: World, prompt: str, text: str, place: int) -> list[str]:
    """What one sentence can be mended to: nothing, or a sentence of the ideal answer that is not there yet."""
    sentences = world.segments(text)
    before, after = sentences[: place - 1], sentences[place:]
    missing = [s for s in world.segments(world.ideal(prompt)) if s not in sentences]
    return [" ".join([*before, *new, *after]) for new in [[], *([s] for s in missing)]]


def demonstrate(world: World, prompts: list[str], annotator: People, seed: int = 0) -> Dataset:
    """Answers written by people: columns `prompt/completion/annotator` and cost.

    The ideal answer, with each of its sentences left out with probability 2 error. Nothing is read; one decision for
    each sentence of the ideal; possible answers: all texts of as many words from the world's vocabulary.
    """
    require(world, "writing answers", "segments", "ideal", "vocabulary")
    asked = ask(Dataset.from_dict({"prompt": list(prompts)}), ["prompt"], annotator)
    rng = np.random.default_rng([seed, 8])
    log2_words = np.log2(len(world.vocabulary()))
    texts, sentences, told = [], [], []
    for person, prompt, _ in asked.each():
        slip, ideal = 2 * person.error, world.segments(world.ideal(prompt))
        kept = rng.random(len(ideal)) >= slip
        texts.append(" ".join(s for s, keep in zip(ideal, kept, strict=True) if keep))
        sentences.append(len(ideal))
        told.append(bits(log2_words * len(texts[-1].split()), np.where(kept, 1 - slip, slip).prod()))
    return asked.answered({**asked.about, "completion": texts}, sentences, 0, told)
