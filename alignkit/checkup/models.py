"""Reward models by name: a folder or Hub id of a sequence-classification model, a reward of ours, a world's gold."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from alignkit import worlds
from alignkit.errors import AlignkitError
from alignkit.loading import check_files, check_weights, one_line
from alignkit.rewards.base import GoldReward, Judgement, Reward
from alignkit.rewards.model import RewardModel
from alignkit.taxonomy import RewardCard

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LONGEST_INPUT = 4096  # tokens, for models that do not say how much they take


class SequenceClassifier(Reward):
    """A transformers sequence-classification model with one label, read as its authors mean it to be read.

    Where the tokenizer has a chat template, the prompt's messages and the answer are one conversation; otherwise prompt
    and completion are given as a pair of texts. Inputs longer than the model takes lose their end.
    """

    def __init__(self, model, tokenizer, name: str):
        self.model, self.tokenizer = model.eval(), tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id  # else the wrong token of a padded row is read
        tokenizer.padding_side = "right"
        self.longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 0)
                           or LONGEST_INPUT)  # fmt: skip
        self.reads = "chat" if tokenizer.chat_template else "text"
        self.card = RewardCard(name=name, construction_basis="data-driven", format="scalar", expression="explicit",
                               granularity="response")  # fmt: skip

    @torch.no_grad()
    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        options = {"padding": True, "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        if self.tokenizer.chat_template:
            asked = [[{"role": "user", "content": p}] if isinstance(p, str) else list(p) for p in prompts]
            talks = [self.tokenizer.apply_chat_template([*p, {"role": "assistant", "content": c}], tokenize=False)
                     for p, c in zip(asked, completions, strict=True)]  # fmt: skip
            inputs = self.tokenizer(talks, add_special_tokens=False, **options)  # the template writes them itself
        else:
            inputs = self.tokenizer(prompts, completions, **options)
        return Judgement(self.model(**inputs.to(self.model.device)).logits[:, 0].double().cpu().numpy())


class SavedReward(RewardModel):
    """A reward of alignkit's read from its folder: what it was fit to is not written there."""

    kind = {"name": "saved reward", "format": "scalar", "granularity": "response", "source": ""}


def open_model(name: str) -> Reward:
    """The reward of that name. Safetensors only, and no code from the model is run. AlignkitError if there is none."""
    if name.startswith("gold:"):
        return GoldReward(worlds.load(name.removeprefix("gold:")))
    local = Path(name).is_dir()
    if not local and (not HUB_ID.fullmatch(name) or name.endswith(".py")):
        raise AlignkitError(
            f"{name!r} is no reward: give module:function, path/to/file.py:function, the folder or Hub id of a "
            f"sequence-classification model, or gold:WORLD with one of {', '.join(worlds.WORLDS)}"
        )
    safe = {"trust_remote_code": False, "local_files_only": local}
    with one_line(lambda why: f"could not load a reward model from {name!r} (safetensors only): {why}"):
        if local:
            check_files(Path(name))
        config = AutoConfig.from_pretrained(name, **safe)
        if hasattr(config, "alignkit_pooling"):
            return SavedReward.load(name)
        named = " ".join(getattr(config, "architectures", None) or ["no named architecture"])
        if not named.endswith("ForSequenceClassification") or config.num_labels != 1:
            raise ValueError(f"it holds {named} with {config.num_labels} labels; a reward is a "
                             "...ForSequenceClassification with one label")  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **safe
        )
        check_weights(model, told)
    return SequenceClassifier(model, tokenizer, name)
