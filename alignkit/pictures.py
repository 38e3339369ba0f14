"""A policy that sees: prompts name pictures, a vision-language model reads their pixels and writes about them.

policy = load_picture_policy("shapes")
policy.sample(["red_circle_top_left.png"])
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, List
from PIL import Image as PillowImage
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from alignkit.errors import AlignkitError, DataError
from alignkit.loading import load_model, shipped
from alignkit.policy import Policy
from alignkit.tokens import Batch

Look = Callable[[str], np.ndarray]  # from a prompt to pixels, uint8 of shape (height, width, 3)
GRAY = 128
NEVER = -1e4  # a logit; not -inf, which makes a KL undefined


@dataclass
class PictureBatch(Batch):
    """A token batch with what each row sees: `pixels`, uint8 of shape (N, height, width, 3)."""

    pixels: Tensor

    def rows(self, index) -> PictureBatch:
        return PictureBatch(**vars(super().rows(index)), pixels=self.pixels[index])


class Seen(list):
    """Token ids of a prompt, with the picture it names."""

    def __init__(self, ids: list[int], pixels: Tensor):
        super().__init__(ids)
        self.pixels = pixels


@contextmanager
def showing(module: nn.Module, pixels: Tensor) -> Iterator[None]:
    """Within it, calls of `module` that read prompts (and not only go on from a cache) see these pictures."""

    def show(_module, args, kwargs):
        if kwargs.get("past_key_values") is None:
            kwargs["pixel_values"] = to_values(pixels).to(module.device, module.dtype)
        return args, kwargs

    with module.register_forward_pre_hook(show, with_kwargs=True):  # which takes the hook away at the end
        yield


def to_values(pixels: Tensor) -> Tensor:
    """uint8 (N, height, width, 3) to what a vision tower reads: float32 in [-1, 1], (N, 3, height, width)."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


class PicturePolicy(Policy):
    """A Llava model; `look` gives the picture a prompt names. The prompt's text itself is never shown to the model.

    All prompts are the same tokens, <bos> and a place for each patch of the picture, so they have one length.
    """

    def __init__(self, model, tokenizer, name: str = "policy", look: Look | None = None):
        super().__init__(model, tokenizer, name)
        self.look = look or _world_picture
        model.config.vocab_size = model.config.text_config.vocab_size  # where a text-only model has it
        vision = model.config.vision_config
        self.side, self.patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2

    def seeing(self, look: Look, name: str | None = None) -> PicturePolicy:
        """The same model (not a copy), shown other pictures at the same prompts."""
        other = copy.copy(self)
        other.share(self, name or self.name)
        other.look = look
        return other

    def blind(self) -> PicturePolicy:
        """The same model, always shown an even gray."""
        gray = np.full((self.side, self.side, 3), GRAY, dtype=np.uint8)
        return self.seeing(lambda prompt: gray, f"{self.name}, blind")

    # -- prompts to tokens and pixels ----------------------------------------------------------------------------

    def pixels(self, prompt: str) -> Tensor:
        """What the model sees at this prompt, uint8 (side, side, 3). AlignkitError if that is no such picture."""
        if not isinstance(prompt, str):
            raise AlignkitError(f"a picture is named by text, not by {type(prompt).__name__}: {prompt!r}")
        seen = np.asarray(self.look(prompt))
        if seen.shape != (self.side, self.side, 3) or seen.dtype != np.uint8:
            raise AlignkitError(
                f"the picture of {prompt!r} has shape {seen.shape} and type {seen.dtype}; {self.name!r} sees uint8 of "
                f"shape ({self.side}, {self.side}, 3): resize it in `look`"
            )
        return torch.from_numpy(seen.copy())

    def prompt_ids(self, prompt: str) -> Seen:
        places = [self.model.config.image_token_id] * self.patches
        return Seen([self.tokenizer.bos_token_id, *places], self.pixels(prompt))

    def tokenize(self, prompts: list[str], completions: list, ended=True) -> tuple[list[Seen], list[list[int]]]:
        """As in `Policy`; a prompt is the places of its picture, which no completion may hold."""
        heads, tails = super().tokenize([""] * len(prompts), completions, ended)
        for row, tail in enumerate(tails):
            if self.model.config.image_token_id in tail:
                raise AlignkitError(
                    f"a completion can't hold the place of a picture: {completions[row]!r}; take it out"
                )
        return [self.prompt_ids(prompt) for prompt in prompts], tails

    def pad(self, heads: list[Seen], tails: list[list[int]]) -> PictureBatch:
        batch = super().pad(heads, tails)
        seen = [head.pixels for head in heads]
        pixels = torch.stack(seen) if seen else torch.zeros((0, self.side, self.side, 3), dtype=torch.uint8)
        return PictureBatch(**vars(batch), pixels=pixels.to(self.device))

    # -- scoring and sampling ------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, batch: PictureBatch) -> Iterator[None]:
        """As in `Policy`; the model sees the batch's pictures and never writes the token for a patch of one."""

        def silence(_module, _args, output):
            output.logits = output.logits.clone()
            output.logits[..., self.model.config.image_token_id] = NEVER
            return output

        with self.model.register_forward_hook(silence), super().reading(batch), showing(self.model, batch.pixels):
            yield


def _world_picture(prompt: str) -> np.ndarray:
    from alignkit import worlds

    return worlds.load("shapes").picture(prompt)


def load_picture_policy(name_or_path: str | Path, patient: int = 0, look: Look | None = None) -> PicturePolicy:
    """A shipped policy ("shapes", with `patient` 0-4) or a local folder with a Llava model and its tokenizer.

    `look` gives the picture that a prompt names (default: what world "shapes" draws); it is to have the size the
    model's vision tower takes. Only safetensors are read, no code from a model is run, and no network is touched.
    """
    if not (shipped(str(name_or_path), patient) or Path(name_or_path)).is_dir():
        raise AlignkitError(f"no policy that sees is shipped as or lies in {str(name_or_path)!r}. Give 'shapes', or a "
                            "folder with a Llava config.json, model.safetensors and a tokenizer")  # fmt: skip
    model, tokenizer, name = load_model(name_or_path, patient, kind=LlavaForConditionalGeneration, dtype=torch.float32)
    return PicturePolicy(model, tokenizer, name, look)


def with_images(data: Dataset, look: Look | None = None) -> Dataset:
    """The data set with the column `images` that TRL reads for vision-language models: a list of pictures a row.

    DataError if there is no column `prompt`.
    """
    if "prompt" not in data.column_names:
        raise DataError(f"pictures are named by the column 'prompt'; found {data.column_names}")
    look = look or _world_picture
    pictures = [[PillowImage.fromarray(np.asarray(look(prompt)))] for prompt in data["prompt"]]
    columns = {name: data[name][:] for name in data.column_names}
    features = Features({**data.features, "images": List(Image())})
    return Dataset.from_dict({**columns, "images": pictures}, features=features)
