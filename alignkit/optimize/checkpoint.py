"""Interrupted training: what a loop needs to go on exactly where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from alignkit.errors import AlignkitError
from alignkit.files import write_atomic


class Checkpoint:
    """State of a loop in one file, written every `every` steps and read again by the same call.

    `settings` are what must be the same for the state to fit: another learning rate, other data or another policy is
    another run, and an error. The file is in safetensors' format: tensors, and all else as JSON in its header.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], every: int = 10):
        if every < 1:
            raise AlignkitError(f"checkpoint: every must be at least 1, not {every}")
        self.path, self.every = Path(path), every
        self.settings = {name: _plain(value) for name, value in settings.items()}

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, or None if there is none yet."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                state = _with_tensors(json.loads(file.metadata()["state"]), tensors)
            settings = state.pop("settings")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise AlignkitError(f"{self.path} is not a checkpoint that can be read; delete it to start anew") from error
        differ = sorted(k for k in {*settings, *self.settings} if settings.get(k) != self.settings.get(k))
        if differ:
            raise AlignkitError(
                f"{self.path} is the checkpoint of another run: {', '.join(differ)} differ; name another file, or "
                "delete it to start anew"
            )
        return state

    def save(self, step: int, last: bool, **state: Any) -> None:
        """Write the state after `step` steps if it is time to, at once or not at all."""
        if step % self.every and not last:
            return
        tensors: dict[str, torch.Tensor] = {}
        plain = _without_tensors({"settings": self.settings, "step": step, **state}, tensors)
        write_atomic(self.path, safetensors.torch.save(tensors, {"state": json.dumps(plain)}))


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What JSON can hold: tensors are moved to `tensors`, and a dict becomes a list of its items (keys may be ints)."""
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}"
        tensors[name] = value.detach().clone().contiguous()  # a copy: tied weights may not share memory in the file
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _without_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, tensors) for item in value]
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `_without_tensors`; tuples come back as lists."""
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _with_tensors(item, tensors) for key, item in value["items"]}
    return value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def digest(*parts: Any) -> str:
    """A short hash of texts and tensors, to tell one data set or policy from another."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            for value in part.state_dict().values():
                h.update(value.detach().cpu().float().numpy().tobytes())
        elif isinstance(part, torch.Tensor):
            h.update(part.detach().cpu().numpy().tobytes())
        else:
            h.update(json.dumps(part, default=str).encode())
    return h.hexdigest()[:16]
