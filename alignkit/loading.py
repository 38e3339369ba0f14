"""Models from disk or the Hub: safetensors only, no code that comes with them, and one line about what is wrong."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from alignkit.errors import AlignkitError
from alignkit.files import DATA

MODELS = DATA / "models"
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer*", "vocab*", "*.model")  # files of which one at least comes with every tokenizer
OTHER_TASKS = ("Classification", "MaskedLM", "QuestionAnswering", "MultipleChoice", "RewardModel", "Encoder")


def load_model(name_or_path: str | Path, patient: int = 0, kind=AutoModelForCausalLM, **options) -> tuple:
    """Model, tokenizer and name of a shipped policy, a folder, or a Hub id; AlignkitError if there is none.

    `kind`: the transformers class that reads the model. Refused are weights that are damaged, missing, of other shapes
    than the config's, not finite, or in any format but safetensors, and models that were trained for another task.
    """
    folder = shipped(str(name_or_path), patient) or Path(name_or_path)
    local = folder.is_dir()
    source = str(folder) if local else str(name_or_path)
    if not local and ("/" not in source or source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise AlignkitError(_no_policy(source, "no such folder or shipped policy"))
    safe = {"trust_remote_code": False, "local_files_only": local}
    if MODELS in folder.parents:
        options.setdefault("dtype", torch.float32)  # some are shipped in half precision, to be small
    with one_line(lambda why: _no_policy(source, why)):
        if local:
            check_files(folder)
        else:
            check_index(cached_file(source, INDEX, _raise_exceptions_for_missing_entries=False))
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
        how = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}  # told below
        model, told = kind.from_pretrained(source, **how, **safe, **options)
        trained_as = (getattr(model.config, "architectures", None) or [type(model.config).__name__])[0]
        if any(task in trained_as for task in OTHER_TASKS) or getattr(model.config, "is_decoder", True) is False:
            raise ValueError(f"it holds a {trained_as}, which does not write text")
        check_weights(model, told)
        if getattr(model, "_hf_peft_config_loaded", False):
            model = _adapted(model, source, kind, use_safetensors=True, **safe, **options)
    return model, tokenizer, folder.name if local else source


def _adapted(model, source: str, kind, **options):
    """The base with its adapters, as a model of peft's: they can be trained on, switched off and merged."""
    import peft

    base = kind.from_pretrained(next(iter(model.peft_config.values())).base_model_name_or_path, **options)
    return peft.PeftModel.from_pretrained(base, source, is_trainable=True)


def shipped(name: str, patient: int) -> Path | None:
    """The folder of a shipped model, None if the name is no such."""
    folder = MODELS / f"{name}-{patient % 5}"
    return folder if Path(name).name == name and (folder / "config.json").is_file() else None


@contextmanager
def one_line(message):
    """What libraries raise about a model's files becomes one AlignkitError: `message` makes it from the reason."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        why = str(error).strip() or type(error).__name__
        raise AlignkitError(message(why.splitlines()[0].rstrip("."))) from error


def check_files(folder: Path) -> None:
    """ValueError about the first file in the folder that can't be what it is called, or that an index must not name."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError("there is no adapter_model.safetensors in it, and no other format is read")
        base = Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        if base.is_dir() and base != folder:
            check_files(base)
    check_index(folder / INDEX)
    if not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise ValueError("there is no tokenizer (tokenizer.json) in it")
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            if stream.read(7) == b"version":
                raise ValueError(f"{file.name} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file.name} is damaged ({error}); fetch it again") from error


def check_index(file: str | Path | None) -> None:
    """ValueError if the index of a model in several files names anything but safetensors beside itself."""
    if file is None or not Path(file).is_file():
        return
    for name in sorted(set(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX} names {name!r}; only safetensors files in the same folder are read")


def check_weights(model, told: dict) -> None:
    """ValueError if weights were missing or misshapen (`told`: transformers' loading info), or aren't finite."""
    for what, names in (("other shapes than config.json says", told["mismatched_keys"]),
                        ("no values at all", told["missing_keys"])):  # fmt: skip
        if names:
            first = min(name if isinstance(name, str) else name[0] for name in names)
            raise ValueError(f"{len(names)} of its weights have {what}, such as {first}")
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise ValueError(f"its weight {name} holds NaN or infinities: the file is damaged, or training diverged")


def _no_policy(source: str, why: str) -> str:
    names = sorted({p.parent.name.rsplit("-", 1)[0] for p in MODELS.glob("*/config.json")})
    return (f"could not load a policy from {source!r}: {why}. Give a shipped name "
            f"({', '.join(names) or 'none built yet'}), a folder with config.json, model.safetensors and a tokenizer, "
            "or a Hub id such as 'org/name' (which needs a network or a local cache).")  # fmt: skip
