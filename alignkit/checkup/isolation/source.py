"""From what a user names to a reward: a function in a module or file, a sequence-classification model, a world's gold.

This runs inside the reward's own process. `UsageError` is the user's slip (no such file, no such function); whatever
else goes wrong while loading is a fact about the reward.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import CodeType

import numpy as np
import torch

from alignkit import worlds
from alignkit.errors import AlignkitError
from alignkit.rewards.base import FunctionReward, GoldReward, Judgement, Reward, as_reward
from alignkit.rewards.model import RewardModel
from alignkit.taxonomy import RewardCard

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LONGEST_LITERAL = 40  # characters; longer strings in a function's code are messages, not keywords
MOST_LITERALS = 40
LONGEST_INPUT = 4096  # tokens, for models that do not say how much they take


class UsageError(AlignkitError):
    """The reward was not named well; nothing can be audited."""


def open_reward(name: str) -> Reward:
    """The reward behind a name. UsageError if there is none; whatever its module raises passes through."""
    if name.startswith("gold:"):
        try:
            return GoldReward(worlds.load(name.removeprefix("gold:")))
        except AlignkitError as error:
            raise UsageError(str(error)) from None
    folder = Path(name)
    if folder.is_dir():
        return _open_model(name, local=True)
    if ":" in name:
        return as_reward(_open_function(name), name)
    if HUB_ID.fullmatch(name) and not name.endswith(".py"):
        return _open_model(name, local=False)
    raise UsageError(
        f"{name!r} is no reward: give module:function, path/to/file.py:function, the folder or Hub id of a "
        f"sequence-classification model, or gold:WORLD with one of {', '.join(worlds.WORLDS)}"
    )


# --- functions


def _open_function(name: str):
    place, _, attribute = name.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(module).items()
                   if callable(value) and getattr(value, "__module__", "") == module.__name__]  # fmt: skip
            raise UsageError(f"{place!r} has no {attribute!r}; it defines: {', '.join(own[:12]) or 'no function'}")
        found = getattr(found, part)
    if inspect.isclass(found):
        raise UsageError(f"{name!r} is a class; name a function, or an object made from the class")
    if not callable(found):
        raise UsageError(f"{name!r} is a {type(found).__name__}, not a function of prompts and completions")
    return found


def _import_file(path: Path):
    if not path.is_file():
        raise UsageError(f"there is no file {path} (relative paths start in {Path.cwd()})")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(f"audited_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str):
    sys.path.insert(0, str(Path.cwd()))
    try:
        known = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        known = None
    if known is None:
        raise UsageError(f"there is no module {name!r} to import (from {Path.cwd()} and the installed packages)")
    return importlib.import_module(name)


def literals(reward: Reward) -> list[str]:
    """Short strings in the code of a function, and in the lists it names: words it may be looking for."""
    function = getattr(reward, "function", None)
    code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if not isinstance(reward, FunctionReward) or code is None:
        return []
    held = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    found = [*_constants(code), *held, *(function.__defaults__ or ()), *(known.get(name) for name in code.co_names)]
    texts = [t for value in found for t in (value if isinstance(value, list | tuple | set | frozenset) else [value])]
    texts += [t for value in found if isinstance(value, dict) for t in value]
    words = [t.strip() for t in texts if isinstance(t, str) and len(t) <= LONGEST_LITERAL and re.search(r"\w\w", t)]
    return sorted(dict.fromkeys(words))[:MOST_LITERALS]


def _is_filled(cell) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _constants(code: CodeType) -> list:
    inner = [value for value in code.co_consts if isinstance(value, CodeType)]
    return [*code.co_consts, *(constant for part in inner for constant in _constants(part))]


# --- models


class SequenceClassifier(Reward):
    """A transformers sequence-classification model with one label, read as its authors mean it to be read.

    Where the tokenizer has a chat template the pair is a conversation; otherwise prompt and completion are given as a
    pair of texts. Inputs longer than the model takes lose their end.
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
        self.card = RewardCard(name=name, construction_basis="data-driven", format="scalar", expression="explicit",
                               granularity="response")  # fmt: skip

    def _encode(self, prompts: list[str], completions: list[str]):
        options = {"padding": True, "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        if not self.tokenizer.chat_template:
            return self.tokenizer(prompts, completions, **options)
        talks = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": p}, {"role": "assistant", "content": c}], tokenize=False
            )
            for p, c in zip(prompts, completions, strict=True)
        ]
        return self.tokenizer(talks, add_special_tokens=False, **options)  # the template writes them itself

    @torch.no_grad()
    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        inputs = self._encode(prompts, completions).to(self.model.device)
        return Judgement(self.model(**inputs).logits[:, 0].double().cpu().numpy())


class SavedReward(RewardModel):
    """A reward of alignkit's read from its folder: what it was fit to is not written there."""

    kind = {"name": "saved reward", "format": "scalar", "granularity": "response", "source": ""}


def _open_model(name: str, local: bool) -> Reward:
    """Safetensors only, and no code from the model is run."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if local:
        _check_folder(Path(name))
    safe = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(name, **safe)
        if hasattr(config, "alignkit_pooling"):
            return SavedReward.load(name)
        if config.num_labels != 1:
            raise UsageError(f"{name!r} has {config.num_labels} labels; a scalar reward needs one")
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **safe
        )
    except AlignkitError as error:
        raise UsageError(str(error)) from None
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"could not load a reward model from {name!r} (safetensors only): {why}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise UsageError(f"{name!r} is not a trained reward model: weights such as {missing!r} are missing in it")
    return SequenceClassifier(model, tokenizer, name)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json: it is not a model in the Hub's format")
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'} can't be read: {error}") from error
    if not any(str(name).endswith("ForSequenceClassification") for name in named):
        raise UsageError(f"{folder} holds {', '.join(map(str, named)) or 'no named architecture'}; a reward is a "
                         "...ForSequenceClassification with one label")  # fmt: skip


# --- scoring, unchecked


def raw_scores(reward: Reward, prompts: list, completions: list) -> list[float | None]:
    """What the reward returns, as floats (None stays None, as TRL allows it), not checked any further.

    TypeError or ValueError if it is not a row of numbers.
    """
    scores = reward.judge(prompts, completions).scores
    if inspect.isawaitable(scores):  # TRL takes asynchronous functions too
        scores = asyncio.run(_waited(scores))
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().numpy()
    if isinstance(scores, np.ndarray) and scores.ndim != 1:
        raise TypeError(f"an array of shape {scores.shape}, not one number for each completion")
    return [None if score is None else float(score) for score in scores]


async def _waited(awaitable):
    return await awaitable
