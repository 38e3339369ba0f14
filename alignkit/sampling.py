"""How a causal LM of any family is read and sampled: padding, caches, states."""

from __future__ import annotations

import inspect
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from alignkit.tokens import LOGITS


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """One token a row by inverting the cumulative distribution (in float64) at `uniform` in [0, 1); shape (N,).

    `logits`: (N, vocabulary). `temperature` 0 takes the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    tokens = []
    at_once = max(1, LOGITS // 16 // logits.shape[-1])
    for part, u in zip(logits.split(at_once), uniform.split(at_once), strict=True):
        cumulative = torch.softmax(part.double() / temperature, -1).cumsum(-1)
        target = u[:, None] * cumulative[:, -1:]
        tokens.append(torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1))
    return torch.cat(tokens)


def positions(attention: Tensor) -> Tensor:
    """Position of each token, counted from the first that is not padding."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


@lru_cache
def _parameters(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def forward(model, **inputs):
    """The model's output for those of the inputs that its family takes (Mamba takes no positions, and so on)."""
    base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    known = _parameters(type(base))
    return model(**{name: value for name, value in inputs.items() if name in known})


def is_recurrent(model) -> bool:
    """Whether some layers carry a state along the sequence (Mamba, RWKV, LFM2, Qwen3-Next, ...), which padding on the
    left would change."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    return getattr(model, "_is_stateful", False) or any(k == "conv" or "linear" in k or "recurrent" in k for k in kinds)


class Reading:
    """Rows that a model reads token by token: `logits` of what comes next, shape (rows, vocabulary).

    `ids` and `attention`, shape (rows, P): left-padded, but without any padding for a recurrent model. Families with
    no cache, or one of their own kind, read the whole row again at each token: slow, and right.
    """

    def __init__(self, model, ids: Tensor, attention: Tensor):
        self.model, self.ids, self.attention = model, ids, attention
        self.masked = not is_recurrent(model)
        self._read(ids, positions(attention))

    def _read(self, ids: Tensor, place: Tensor, **cache) -> None:
        mask = {"attention_mask": self.attention} if self.masked else {}
        out = forward(self.model, input_ids=ids, position_ids=place, logits_to_keep=1, use_cache=True, **mask, **cache)
        self.logits, self.cache = out.logits[:, -1], None
        for name in ("past_key_values", "cache_params"):
            if type(out.get(name)) is DynamicCache:
                self.name, self.cache = name, out[name]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order, repeated where an index is."""
        self.logits, self.ids, self.attention = self.logits[rows], self.ids[rows], self.attention[rows]
        if any(hasattr(layer, "conv_states") for layer in getattr(self.cache, "layers", ())):
            self.cache.reorder_cache(rows)  # beam search's word: the only one that layers with a state know
        elif self.cache is not None:
            self.cache.batch_select_indices(rows)

    def append(self, token: Tensor, rows: Tensor | None = None) -> None:
        """Each of the `rows` (default: all) goes on with its token, shape (rows,); the others are left."""
        if rows is not None:
            self.select(rows)
        place = self.attention.sum(1, keepdim=True)
        self.attention = F.pad(self.attention, (0, 1), value=1)
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        if self.cache is None:
            self._read(self.ids, positions(self.attention))
        else:
            self._read(token[:, None], place, **{self.name: self.cache})


def continue_rows(reading: Reading, noise: Tensor, temperature: float, ends: Tensor) -> list[list[int]]:
    """Sample on from `reading` up to and including the first token in `ends`, or for noise.shape[1] tokens.

    `noise`: uniform numbers, shape (rows, max_new_tokens). Rows that ended are dropped on the way.
    """
    rows, steps = noise.shape
    alive = torch.arange(rows, device=noise.device)
    tokens = torch.zeros((rows, steps), dtype=torch.long, device=noise.device)
    lengths = torch.full((rows,), steps)
    for t in range(steps):
        token = draw(reading.logits, noise[alive, t], temperature)
        tokens[alive, t] = token
        going = ~torch.isin(token, ends)
        lengths[alive[~going].cpu()] = t + 1
        if t + 1 == steps or not going.any():
            break
        keep = None if going.all() else going.nonzero().squeeze(1)
        if keep is not None:
            alive, token = alive[keep], token[keep]
        reading.append(token, keep)
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
