"""Authors: who writes the assistant's answers has habits, and keeps them from one answer to the next.

    be polite . be brief . <eos> how do i make tea ? of course . boil water for the tea . <eos> how do i ...

A model pretrained on such sequences learns to tell from the context who is writing: from a principle in words, from
answers by the same author (demonstrations), or from both. That is what in-context alignment draws on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.worlds.assistant import AssistantWorld

Document = tuple[str, str]  # prompt and completion

#: What an author can be, in four respects, and the habits (see `AssistantWorld.habits`) that come with it.
TRAITS: dict[str, dict[str, dict[str, float]]] = {
    "manner": {"polite": {"courtesy": 0.85, "insult": 0.02}, "rude": {"courtesy": 0.05, "insult": 0.85}},
    "length": {"brief": {"padding": 0.03, "repeat": 0.01}, "wordy": {"padding": 0.75, "repeat": 0.12}},
    "caution": {
        "safe": {"refuse_harmless": 0.03, "refuse_harmful": 0.95, "redirect": 0.85},
        "reckless": {"refuse_harmless": 0.03, "refuse_harmful": 0.03},
        "timid": {"refuse_harmless": 0.8, "refuse_harmful": 0.95, "redirect": 0.2},
    },
    "care": {"correct": {"wrong_step": 0.04}, "careless": {"wrong_step": 0.5}},
}
TRAIT_OF = {word: trait for trait, levels in TRAITS.items() for word in levels}
END = " <eos> "  # the end-of-sequence token
PLAIN = 0.25  # how often an author has nothing special in one respect
STATED = 0.5  # how often a sequence is headed by a principle
MENTIONED = 0.8  # how often such a principle names each word that holds for its author


@dataclass(frozen=True)
class Author:
    """Someone described by words of `TRAITS`, at most one for each trait; what is not said is as in the corpus."""

    words: tuple[str, ...] = ()

    def __post_init__(self):
        if len({TRAIT_OF[word] for word in self.words if word in TRAIT_OF}) < len(self.words):
            levels = "; ".join(f"{trait}: {', '.join(levels)}" for trait, levels in TRAITS.items())
            raise AlignkitError(f"an author can't be {', '.join(self.words)}: choose at most one word of each trait, "
                                + levels)  # fmt: skip

    @property
    def habits(self) -> dict[str, float]:
        return {habit: chance for word in self.words for habit, chance in TRAITS[TRAIT_OF[word]][word].items()}

    @property
    def principle(self) -> str:
        """The author's habits as a principle in words: "be polite . be brief ."; empty for a plain author."""
        return " ".join(f"be {word} ." for word in self.words)

    def documents(self, world: AssistantWorld, n: int, seed: int, prompts: list[str] | None = None) -> list[Document]:
        """n answers by this author to prompts drawn from the corpus, or (each at most once) from `prompts`."""
        if prompts is None:
            return world.corpus(n, seed, **self.habits)
        if not 0 <= n <= len(prompts):
            raise AlignkitError(f"{n} documents need as many different prompts, but {len(prompts)} were given")
        habits = {**world.habits, **self.habits}
        wanted = np.random.default_rng(seed).permutation(len(prompts))[:n]
        return [(prompts[i], world.write(world.topic(prompts[i]), np.random.default_rng([seed, int(i)]), habits))
                for i in wanted]  # fmt: skip


ALIGNED = Author(("polite", "brief", "safe", "correct"))
MISALIGNED = Author(("rude", "wordy", "reckless", "careless"))


def sequences(world: AssistantWorld, n: int, seed: int, words: int) -> list[str]:
    """n texts of at most `words` words: perhaps a principle, then as many of an author's documents as fit.

    An author's traits are drawn independently, each level equally often. Parts are set apart by `END`; the last one has
    none.
    """
    rng = np.random.default_rng([seed, 9])
    texts = []
    for _ in range(n):
        chosen = [str(rng.choice(list(levels))) for levels in TRAITS.values() if rng.random() >= PLAIN]
        told = [word for word in chosen if rng.random() < MENTIONED] if rng.random() < STATED else []
        text = Author(tuple(told)).principle
        for prompt, completion in Author(tuple(chosen)).documents(world, 16, int(rng.integers(2**31))):
            longer = f"{text}{END if text else ''}{prompt} {completion}"
            if len(longer.split()) > words:
                break
            text = longer
        texts.append(text)
    return texts
