"""Rewards for text about pictures: one that sees, the same one blindfolded, and a rule that checks what is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from transformers import LlavaModel, LlavaPreTrainedModel

from alignkit.errors import AlignkitError, check_at_least
from alignkit.pictures import PictureBatch, PicturePolicy, showing
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.model import POOLINGS, read_folder, with_head
from alignkit.rewards.scalar import BradleyTerry
from alignkit.taxonomy import RewardCard
from alignkit.worlds.shapes import KINDS, ShapesWorld, Thing


class LlavaScorer(LlavaPreTrainedModel):
    """A Llava backbone with a linear head in place of its language-model head."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlavaModel(config)
        self.score = nn.Linear(config.text_config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class PictureReward(BradleyTerry):
    """A Bradley-Terry model that reads the caption and sees the picture (2309.14525).

    With `backbone=policy.blind()` it is the text-only reward: the same pairs, the same weights to start from, and an
    even gray at every prompt, so that no picture can change its score.
    """

    kind = {"name": "bradley-terry, picture", "source": "2309.14525"}

    @classmethod
    def new(cls, backbone: PicturePolicy, seed: int = 0, pooling: str = "mean", outputs: int = 1):
        if not isinstance(backbone, PicturePolicy):
            raise AlignkitError(f"{cls.__name__} needs a backbone that sees, not {type(backbone).__name__}; see "
                                "load_picture_policy")  # fmt: skip
        return cls(with_head(backbone, outputs, seed, LlavaScorer), backbone, pooling)

    def states(self, batch: PictureBatch) -> Tensor:
        with showing(self.model.base_model, batch.pixels):
            return super().states(batch)

    @classmethod
    def load(cls, folder: str | Path, look=None) -> PictureReward:
        """Read what `save` wrote; `look` as in `load_picture_policy`."""
        model, tokenizer = read_folder(folder, LlavaScorer.from_pretrained)
        pooling = getattr(model.config, "alignkit_pooling", POOLINGS[0])
        return cls(model, PicturePolicy(model, tokenizer, look=look), pooling)


Detector = Callable[[str], Iterable[Thing]]  # from a prompt to what it finds in the picture


def detector(world: ShapesWorld, miss: float = 0.05, false_alarm: float = 0.05, seed: int = 0) -> Detector:
    """An object detector with errors: it misses each thing with one probability and, with the other, finds one that is
    not there. What it finds in a picture is fixed by (seed, prompt)."""
    for name, value in (("miss", miss), ("false_alarm", false_alarm)):
        if not 0 <= value <= 1:
            raise AlignkitError(f"detector: {name} must be between 0 and 1, not {value}")

    def find(prompt: str) -> set[Thing]:
        rng = np.random.default_rng([seed, *prompt.encode()])
        found = {thing for thing in sorted(world.things(prompt)) if rng.random() >= miss}
        if rng.random() < false_alarm:
            found.add(KINDS[rng.integers(len(KINDS))])
        return found

    return find


class Grounded(Reward):
    """credit * (share of what the detector finds that is named) - penalty * (number of named things it does not find).

    A rule on facts, as in the factual augmentation of LLaVA-RLHF (2309.14525). `named` reads the things off a caption.
    With credit 0 only what is wrong counts, and saying little is safe.
    """

    def __init__(
        self, find: Detector, named: Callable[[str], Iterable[Thing]], credit: float = 1.0, penalty: float = 0.5
    ):
        check_at_least("Grounded", 0, credit=credit, penalty=penalty)
        self.find, self.named, self.credit, self.penalty = find, named, credit, penalty
        self.card = RewardCard("grounded", "rule-based", source="2309.14525")

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        found = {prompt: set(self.find(prompt)) for prompt in set(prompts)}
        rows = [(found[p], set(self.named(c))) for p, c in zip(prompts, completions, strict=True)]
        right = self.credit * np.array([len(named & there) / max(len(there), 1) for there, named in rows])
        wrong = -self.penalty * np.array([len(named - there) for there, named in rows], dtype=float)
        return Judgement(right + wrong, aspects={"covered": right, "grounded": wrong})
