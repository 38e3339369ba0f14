"""Models from disk or the Hub: safetensors only, no code that comes with them, and one line about what is wrong."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.errors import AlignkitError
from alignkit.files import DATA

MODELS = DATA / "models"


def load_model(name_or_path: str | Path, patient: int = 0, **options) -> tuple:
    """Model, tokenizer and name of a shipped policy, a folder, or a Hub id; AlignkitError if there is none."""
    folder = _shipped(str(name_or_path), patient) or Path(name_or_path)
    local = folder.is_dir()
    source = str(folder) if local else str(name_or_path)
    if not local and ("/" not in source or source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise AlignkitError(_no_policy(source, "no such folder or shipped policy"))
    safe = {"trust_remote_code": False, "local_files_only": local}
    if MODELS in folder.parents:
        options.setdefault("dtype", torch.float32)  # some are shipped in half precision, to be small
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **safe, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = str(error).strip() or type(error).__name__
        raise AlignkitError(_no_policy(source, why.splitlines()[0])) from error
    return model, tokenizer, folder.name if local else source


def _shipped(name: str, patient: int) -> Path | None:
    folder = MODELS / f"{name}-{patient % 5}"
    return folder if Path(name).name == name and (folder / "config.json").is_file() else None


def _no_policy(source: str, why: str) -> str:
    names = sorted({p.parent.name.rsplit("-", 1)[0] for p in MODELS.glob("*/config.json")})
    return (
        f"could not load a policy from {source!r}: {why}. Give a shipped name "
        f"({', '.join(names) or 'none built yet'}), "
        "a folder with config.json, model.safetensors and a tokenizer, or a Hub id such as 'org/name' "
        "(which needs a network or a local cache)."
    )
