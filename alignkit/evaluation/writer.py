"""Somebody who writes answers with a planted fault, or with none: the text of a reward benchmark."""

from __future__ import annotations

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.worlds.assistant import FAULTS, AssistantWorld
from alignkit.worlds.base import World

WHERE = {"unsafe": (True,), "wrong": (False,), "over-cautious": (False,)}  # on harmful requests? others: on any


class Writer:
    """Writes from the sentences of `AssistantWorld` (of its text, or of your own in that form); AlignkitError for
    another kind of world. `said`: the sentences that are not steps, by kind ("promise", "insult", ...)."""

    def __init__(self, world: World):
        if not isinstance(world, AssistantWorld):
            raise AlignkitError(f"a benchmark needs a world that knows faults and topics, which {world.name!r} is not: "
                                "worlds.AssistantWorld, perhaps with a text of your own")  # fmt: skip
        self.world = world
        self.said = {kind: sorted(texts) for kind, texts in world.sentences.items()}

    def can(self, fault: str, prompt: str) -> bool:
        """Whether this fault can be planted in an answer to this prompt."""
        if fault not in FAULTS:
            raise AlignkitError(f"no fault {fault!r}; there are {', '.join(FAULTS)}")
        return self.world.topic(prompt).harmful in WHERE.get(fault, (True, False))

    def alike(self, prompt: str, n: int, rng: np.random.Generator) -> list[str]:
        """Up to n different answers without a fault that all have the same gold."""
        texts = [" ".join(self.clean(prompt, rng))]
        worth = self.world.gold([prompt], texts)[0]
        for _ in range(60 * (n > 1)):
            text = " ".join(self.clean(prompt, rng))
            if len(texts) < n and text not in texts and abs(self.world.gold([prompt], [text])[0] - worth) < 1e-9:
                texts.append(text)
        return texts

    def faulty(self, prompt: str, fault: str, rng: np.random.Generator) -> str:
        """An answer whose faults are of this kind and no other."""
        for _ in range(100):
            text = " ".join(self._plant(prompt, fault, rng))
            if set(self.world.faults(prompt, text)) - {""} == {fault}:
                return text
        raise AlignkitError(f"could not plant {fault!r} in an answer to {prompt!r}; can the fault occur there?")

    def clean(self, prompt: str, rng: np.random.Generator) -> list[str]:
        """The sentences of an answer without a fault: some of the topic's steps, or a refusal where one is due."""
        topic = self.world.topic(prompt)
        if topic.harmful:
            return self._refusal(rng)
        steps = rng.permutation(topic.steps)[: rng.integers(1, len(topic.steps) + 1)]
        courtesy = self._pick(str(rng.choice(["promise", "thanks"])), rng) * _coin(rng)
        return courtesy + [f"{step} ." for step in steps]

    def _refusal(self, rng: np.random.Generator) -> list[str]:
        return (self._pick("thanks", rng) * _coin(rng) + self._pick("refusal", rng)
                + self._pick("redirect", rng) * _coin(rng))  # fmt: skip

    def _pick(self, kind: str, rng: np.random.Generator) -> list[str]:
        return [str(rng.choice(self.said[kind]))]

    def _plant(self, prompt: str, fault: str, rng: np.random.Generator) -> list[str]:
        """The sentences of an answer with the fault put in."""
        text = self.clean(prompt, rng)
        place = int(rng.integers(len(text) + 1))
        if fault == "rude":
            return text[:place] + self._pick("insult", rng) + text[place:]
        if fault == "wordy":
            extra = self._pick("padding", rng) if _coin(rng) else [text[-1]]
            return text[:place] + extra + text[place:]
        if fault == "wrong":
            others = [t for t in self.world.topics if not t.harmful and t is not self.world.topic(prompt)]
            extra = [f"{rng.choice(others[int(rng.integers(len(others)))].steps)} ."]
            return text[:place] + extra + text[place + _coin(rng) :]  # beside a step, or in its place
        if fault == "garbled":
            return _garble(text, rng)
        if fault == "unsafe":
            steps = rng.permutation(self.world.topic(prompt).steps)[: rng.integers(1, 4)]
            return self._pick("promise", rng) * _coin(rng) + [f"{step} ." for step in steps]
        return self._refusal(rng)  # over-cautious


def _garble(text: list[str], rng: np.random.Generator) -> list[str]:
    """One sentence with its words in random order, or the last one cut off."""
    if _coin(rng):
        return [*text[:-1], " ".join(text[-1].split()[: int(rng.integers(1, len(text[-1].split()) - 1))])]
    place = int(rng.integers(len(text)))
    words = text[place].removesuffix(" .").split()
    return [*text[:place], f"{' '.join(rng.permutation(words))} .", *text[place + 1 :]]


def _coin(rng: np.random.Generator) -> int:
    return int(rng.integers(2))
