"""Feedback in words: what is wrong and where, the answer mended, the answer written anew."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import COST, People, assign, bits, further, one_by_one, with_cost
from alignkit.worlds.base import HasCorpus, HasFaults, HasSteps, World, require, write_fault


def faults(world: World, prompt: str, completion: str) -> list[str]:
    """What is wrong with each of `world.segments(completion)`, "" where nothing is.

    A world that only knows whether steps are right (`step_labels`) calls the others "wrong". AlignkitError if it knows
    neither.
    """
    if isinstance(world, HasFaults):
        return world.faults(prompt, completion)
    require(world, HasSteps, "saying what is wrong where")
    return ["" if right else "wrong" for right in world.step_labels(prompt, completion)]


def critique(world: World, answers: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """One sentence that names a fault and its place: columns `prompt/completion/critique/place/fault/annotator`, cost.

    Of the faulty sentences the annotator names i with probability proportional to exp(g_i / temperature), where g_i is
    what its removal would gain them in utility; "nothing is wrong ." competes with a gain of 0. With probability 2
    error any sentence, or none, is given any fault. `place` counts from 1; 0, with fault "", is "nothing". An empty
    completion has no sentence to point at. Cost: one decision for each sentence read.
    """
    singles = one_by_one(answers)
    prompts, texts = singles["prompt"][:], singles["completion"][:]
    people, row, who = assign(annotator, len(singles))
    names = world.fault_names if isinstance(world, HasFaults) else ("wrong",)
    rng = np.random.default_rng([seed, 7])
    along = further(singles, ("prompt", "completion"))
    out = [_criticize(world, people[k], prompts[i], texts[i], names, rng, {c: v[i] for c, v in along.items()})
           for i, k in zip(row, who, strict=True)]  # fmt: skip
    place, fault, log2_answers, p = (list(column) for column in zip(*out, strict=True)) if out else ([],) * 4
    said = [write_fault(i, name) for i, name in zip(place, fault, strict=True)]
    columns = {"prompt": prompts, "completion": texts, "critique": said, "place": place, "fault": fault}
    columns["annotator"] = [people[k].name for k in who]
    sentences = [max(1, len(world.segments(text))) for text in texts]
    said_bits = bits(np.array(log2_answers), np.array(p))
    return with_cost(columns, sentences, 1, said_bits, along)


def _criticize(
    world: World, person: Annotator, prompt: str, text: str, names: tuple[str, ...], rng: np.random.Generator, own: dict
) -> tuple[int, str, float, float]:
    """Place, fault, log2 of the number of possible answers, probability of this one."""
    found, sentences = faults(world, prompt, text), world.segments(text)
    possible = [(0, ""), *((i, name) for i in range(1, len(sentences) + 1) for name in names)]
    true = [(0, ""), *((i, name) for i, name in enumerate(found, 1) if name)]
    without = [text, *(without_sentence(world, text, i) for i, _ in true[1:])]
    worth = _utility(world, person, prompt, without, own) / person.temperature
    chance = np.exp(worth - worth.max())
    chance = dict(zip(true, chance / chance.sum(), strict=True))
    p = np.array([(1 - 2 * person.error) * chance.get(answer, 0.0) + 2 * person.error / len(possible)
                  for answer in possible])  # fmt: skip
    pick = rng.choice(len(possible), p=p / p.sum())
    return *possible[pick], float(np.log2(len(possible))), float(p[pick])


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
    require(world, HasCorpus, "mending answers")
    found = critique(world, answers, annotator, seed)
    people, _, who = assign(annotator, len(found))
    names = ("prompt", "chosen", "rejected", "place", "fault", "annotator")
    along = [name for name in found.column_names if name not in (*names, "completion", "critique", *COST)]
    rows, said = [], []
    for r, number in zip(found, who, strict=True):
        if r["place"]:
            edits = _edits(world, r["prompt"], r["completion"], r["place"])
            own = {name: r[name] for name in along}
            worth = _utility(world, people[number], r["prompt"], edits, own)
            rows.append({**r, "chosen": edits[int(worth.argmax())], "rejected": r["completion"]})
            said.append(r["bits"] + np.log2(len(edits)))
    columns = {name: [r[name] for r in rows] for name in (*names, *along)}
    return with_cost(columns, [r["decisions"] + 1 for r in rows], 1, np.array(said))


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
    require(world, HasCorpus, "writing answers")
    people, _, who = assign(annotator, len(prompts))
    rng = np.random.default_rng([seed, 8])
    log2_words = np.log2(len(world.vocabulary()))
    texts, decisions, said = [], [], []
    for prompt, number in zip(prompts, who, strict=True):
        slip, ideal = 2 * people[number].error, world.segments(world.ideal(prompt))
        kept = rng.random(len(ideal)) >= slip
        texts.append(" ".join(s for s, keep in zip(ideal, kept, strict=True) if keep))
        decisions.append(len(ideal))
        said.append(bits(log2_words * len(texts[-1].split()), np.where(kept, 1 - slip, slip).prod()))
    columns = {"prompt": list(prompts), "completion": texts, "annotator": [people[k].name for k in who]}
    return with_cost(columns, decisions, 0, np.array(said))
