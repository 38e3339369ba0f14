"""What all learned rewards share: a transformers backbone with a linear head, and the fits to pairs and to rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from alignkit.errors import AlignkitError, check_choice
from alignkit.loading import check_files, one_line
from alignkit.policy import Policy, copy_model, load_policy
from alignkit.rewards.base import Judgement, Reward, unique_rows
from alignkit.rewards.data import encode_pairs, is_messages, pair_lengths
from alignkit.rewards.texts import text_of
from alignkit.sampling import forward, is_recurrent, positions
from alignkit.taxonomy import RewardCard
from alignkit.tokens import Batch
from alignkit.training import SMALL, LossOf, default_rate, fit, in_parts, tokens_at_once

POOLINGS = ("mean", "last", "own")
AT_ONCE = 512  # rows that are read together at most
SAFE = {"trust_remote_code": False, "local_files_only": True}


class RewardModel(Reward):
    """A linear head of K numbers on the backbone's hidden states. Subclasses set `kind` and bring a `fit`, whose
    `pooling` is explained here, and whose further options are those of `train`.

    The backbone is a causal LM, with adapters or without, or an encoder such as BERT. Its weights are copied; frozen
    ones are shared with it, and stay frozen. Text and messages are read as the backbone's `encode` reads them.

    `pooling`: "mean" averages the head's output over the completion's tokens, "last" takes the last token (the
    convention of InstructGPT and TRL). Tiny backbones never learned to gather a whole answer in their last state, so
    "mean" is the default here. "own" is whatever the loaded model's class does (an encoder's first token and pooler),
    and gives no outputs by token. `history`: a DataFrame, one row a step.
    """

    reads = "as given"

    #: what the card of this class says
    kind = {"name": "", "source": ""}

    #: further attributes that `save` writes into the model's config, with their defaults
    kept: Mapping[str, Any] = {}

    def __init__(self, model, backbone: Policy, pooling: str = "mean"):
        check_choice(type(self).__name__, "pooling", pooling, POOLINGS)
        self.model, self.backbone, self.pooling = model.eval(), backbone, pooling
        self.history = pd.DataFrame()
        self.card = RewardCard(**{"construction_basis": "data-driven", **self.kind})
        for name, default in self.kept.items():
            setattr(self, name, getattr(model.config, f"alignkit_{name}", default))

    @classmethod
    def new(cls, backbone: Policy | str | Path, seed: int = 0, pooling: str = "mean", outputs: int = 1):
        """The backbone's weights with a fresh head, drawn from `seed`; the backbone itself is not changed."""
        backbone = as_backbone(backbone)
        return cls(with_head(backbone, outputs, seed), backbone, pooling)

    def but(self, **changes):
        """The same reward with some attributes changed; nothing is fit, and the model is shared."""
        unknown = [name for name in changes if not hasattr(self, name)]
        if unknown:
            raise AlignkitError(f"{type(self).__name__}.but: nothing called {unknown[0]!r}")
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def head(self) -> nn.Linear:
        """The linear layer that makes the K numbers."""
        around = [m for name, m in self.model.named_children() if name != self.model.base_model_prefix]
        layers = [m for part in around for m in part.modules() if isinstance(m, nn.Linear)]
        return [layer for layer in layers if layer.out_features == self.model.config.num_labels][-1]

    def encode(self, prompts: list, completions: list) -> Batch:
        """Token batch of prompts and completions. Behind messages, a text is what the assistant said."""
        return self.backbone.encode(prompts, as_turns(prompts, completions))

    def encode_pairs(self, prompts: list, chosen: list, rejected: list) -> Batch:
        """The chosen sides, then the rejected sides (2N rows)."""
        return self.backbone.encode_pairs(prompts, as_turns(prompts, chosen), as_turns(prompts, rejected))

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states of all tokens, laid out as `batch.ids`, shape (N, P + T, hidden); differentiable."""
        body, ids, attention = self.model.base_model, batch.ids, batch.attention
        if not (is_encoder(self.model) or is_recurrent(self.model)):
            return forward(body, input_ids=ids, attention_mask=attention, position_ids=positions(attention),
                           use_cache=False).last_hidden_state  # fmt: skip
        order, inputs = padding_last(batch)
        out = forward(body, **inputs, use_cache=False).last_hidden_state
        return out.gather(1, order.argsort(1)[..., None].expand_as(out))

    def outputs_by_token(self, batch: Batch) -> Tensor:
        """The head's numbers at every token of the completions, shape (N, T, K); differentiable."""
        if self.pooling == "own":
            raise AlignkitError(f"{self.card.name!r} with pooling 'own' has no outputs by token; fit one with 'mean'")
        return self.head(self.states(batch)[:, -batch.mask.shape[1] :])

    def outputs(self, batch: Batch) -> Tensor:
        """K numbers for each completion, shape (N, K); differentiable."""
        if self.pooling == "own":
            return self.model(**padding_last(batch)[1]).logits
        return pooled(self.outputs_by_token(batch), batch.mask, self.pooling)

    def forward(self, batch: Batch) -> Tensor:
        """Scores of a token batch, shape (N,): the first of the K numbers; differentiable."""
        return self.outputs(batch)[:, 0]

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        return Judgement(self.predict(prompts, completions)[:, 0])

    def predict(self, prompts: list, completions: list[str]) -> np.ndarray:
        """K numbers for each completion, shape (N, K), float64."""
        values = read_each(self, lambda rows, _: self.outputs(rows).tolist(), prompts, completions)
        return np.array(values, dtype=float).reshape(len(values), self.model.config.num_labels)

    # -- fitting -------------------------------------------------------------------------------------------------

    def fit_pairs(self, pairs: Dataset, loss_of: Callable, weights: Tensor | None = None, **options):
        """Learn from `prompt/chosen/rejected`; `loss_of(chosen, rejected, index)`: outputs (n, K) of both sides of the
        pairs `index` to their losses (n,). `weights` (N,): how much each pair counts."""
        both, n = encode_pairs(self, pairs), len(pairs)
        counts = torch.ones(n, device=both.ids.device) if weights is None else weights

        def loss(part: Tensor, batch: Tensor) -> tuple[Tensor, dict]:
            chosen, rejected = self.outputs(both.rows(torch.cat([part, part + n]))).chunk(2)
            total = (counts[part] * loss_of(chosen, rejected, part)).sum()
            return total / counts[batch].sum().clamp(min=1e-9), {"accuracy": chosen[:, 0] > rejected[:, 0]}

        return self.train(loss, 2 * pair_lengths(both), **options)

    def fit_rows(self, data: Dataset, goals: np.ndarray, loss_of: LossOf, **options):
        """Learn from `prompt/completion`; `loss_of(outputs, goals)`: outputs (n, K) of some rows, and their `goals`, to
        their losses (n,) or (n, K), of which the mean counts, and what to note."""
        rows = self.encode(data["prompt"][:], data["completion"][:])
        goal = torch.tensor(goals, device=rows.ids.device).float()

        def loss(part: Tensor, batch: Tensor) -> tuple[Tensor, dict]:
            losses, noted = loss_of(self.outputs(rows.rows(part)), goal[part])
            return losses.sum() / (len(batch) * losses[0].numel()), noted

        return self.train(loss, rows.attention.sum(1), **options)

    def train(
        self, loss_of: LossOf, lengths: Tensor, epochs: float = 2, batch_size: int = 32,
        learning_rate: float | None = None, weight_decay: float = 0.01, **options,
    ):  # fmt: skip
        """The loop of `alignkit.training.fit` with a one-cycle learning rate; dropout is off, as in TRL. Returns self.

        `lengths`: how many tokens each row has. `learning_rate`: by default what suits the model's size, and whether it
        has adapters (`default_rate`).
        """
        rate = default_rate(self.model, "reward") if learning_rate is None else learning_rate
        return fit(
            self, loss_of, lengths, name=f"fit {self.card.name}", epochs=epochs, batch_size=batch_size,
            learning_rate=rate, weight_decay=weight_decay, **options,
            schedule=lambda opt, n: OneCycleLR(opt, max_lr=rate, total_steps=max(n + 1, 11), pct_start=0.1),
        )  # fmt: skip

    # -- on disk -------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a transformers sequence-classification model with its tokenizer (safetensors), adapters merged. Other
        programs will read its score off the last token, which is this reward only if pooling is "last"."""
        for name in ("pooling", *self.kept):
            value = getattr(self, name)
            setattr(self.model.config, f"alignkit_{name}", value.tolist() if isinstance(value, np.ndarray) else value)
        merged(self.model).save_pretrained(folder)
        self.backbone.tokenizer.save_pretrained(folder)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path):
        """Read what `save` wrote, or any local sequence-classification model with one label: a causal LM is read at
        its last token, an encoder as its own class reads it."""
        model, tokenizer = read_folder(folder, AutoModelForSequenceClassification.from_pretrained)
        if not any("ForSequenceClassification" in name for name in model.config.architectures or []):
            raise AlignkitError(f"{str(folder)!r} is no reward model: it has no head that was trained to score; fit one"
                                " with this folder as its backbone")  # fmt: skip
        if cls.kind.get("format", "scalar") == "scalar" and model.config.num_labels != 1:
            raise AlignkitError(f"{str(folder)!r} has {model.config.num_labels} labels; a scalar reward needs one")
        if any(not hasattr(model.config, f"alignkit_{name}") for name in cls.kept):
            raise AlignkitError(f"{str(folder)!r} is no {cls.__name__}: it was not written by {cls.__name__}.save")
        usual = "own" if is_encoder(model) else "last"
        return cls(model, Policy(model, tokenizer), getattr(model.config, "alignkit_pooling", usual))


def squared(outputs: Tensor, goals: Tensor) -> tuple[Tensor, dict]:
    """The loss of least squares, for `RewardModel.fit_rows`."""
    return (outputs - goals).pow(2), {}


def as_turns(prompts: list, completions: list) -> list:
    """The completions as their prompts are: behind messages, text is a message of the assistant; behind text, messages
    are what the assistant said last. Token ids stay as they are."""

    def turn(prompt, said):
        if isinstance(prompt, list) and isinstance(said, str):
            return [{"role": "assistant", "content": said}]
        return text_of(said, "assistant") if isinstance(prompt, str) and is_messages(said) else said

    return [turn(prompt, said) for prompt, said in zip(prompts, completions, strict=True)]


def padding_last(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The order of tokens, shape (N, P + T), in which all padding comes last, and the inputs of a model in this order:
    encoders count positions from the left, and layers with a state remember what they have read."""
    order = (1 - batch.attention).argsort(dim=1, stable=True)
    return order, {"input_ids": batch.ids.gather(1, order), "attention_mask": batch.attention.gather(1, order)}


def is_encoder(model) -> bool:
    return model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def pooled(by_token: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(N, T, D) to (N, D): the mean over each completion's tokens, or its last token."""
    length = mask.sum(1)
    if pooling == "last":
        return by_token[torch.arange(len(by_token)), length - 1]
    return (by_token * mask[..., None]).sum(1) / length[:, None]


@torch.no_grad()
def read_rows(batch: Batch, model, values_of: Callable[[Batch, Tensor], Iterable]) -> list:
    """For each row its value in `values_of(rows, index)`, which gets rows of similar length, what fits in memory."""
    lengths, values = batch.attention.sum(1).cpu(), [None] * len(batch)
    for some in lengths.argsort().split(AT_ONCE) if len(batch) else ():
        for part in in_parts(some, lengths, tokens_at_once(model, learning=False)):
            for row, value in zip(part.tolist(), values_of(batch.rows(part), part), strict=True):
                values[row] = value
    return values


def read_each(
    reader: Policy | RewardModel, values_of: Callable[[Batch, list[int]], Iterable], prompts: list, completions: list,
    **encoding,
) -> list:  # fmt: skip
    """`read_rows` for completions, of which those that repeat are read once; `index` says which they are."""
    which, back = unique_rows(prompts, completions)
    batch = reader.encode([prompts[i] for i in which], [completions[i] for i in which], **encoding)
    values = read_rows(batch, reader.model, lambda rows, part: values_of(rows, [which[k] for k in part.tolist()]))
    return [values[k] for k in back]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it PyTorch's global generator starts at `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


# -- backbones -------------------------------------------------------------------------------------------------------


def as_backbone(backbone: Policy | str | Path) -> Policy:
    """A policy as it is; a shipped name, folder or Hub id loaded; an encoder with its separator as the end token."""
    if not isinstance(backbone, str | Path):
        return backbone
    folder = Path(backbone)
    if not (folder / "config.json").is_file() or AutoConfig.from_pretrained(
        str(folder), **SAFE
    ).model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return load_policy(backbone)
    model, tokenizer = read_folder(folder, AutoModel.from_pretrained)
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    return Policy(model, tokenizer, folder.name)


def with_head(
    backbone: Policy, outputs: int, seed: int, make: Callable = AutoModelForSequenceClassification.from_config
):
    """A sequence-classification model around the backbone's body: trained weights are copied, frozen ones shared."""
    whole = backbone.model.get_base_model() if hasattr(backbone.model, "peft_config") else backbone.model
    config = copy.deepcopy(whole.config)
    config.num_labels = outputs
    if not is_encoder(whole):  # their positions may depend on it
        config.pad_token_id = backbone.tokenizer.pad_token_id
    small = sum(p.numel() for p in whole.parameters()) < SMALL
    try:
        with seeded(seed), nullcontext() if small else torch.device("meta"):
            model = make(config)
    except ValueError as error:
        raise AlignkitError(f"transformers knows no {config.model_type} with a head for scores, so {backbone.name!r} "
                            "can't carry a reward model; take another backbone") from error  # fmt: skip
    prefix, frozen = model.base_model_prefix, [p for p in whole.parameters() if not p.requires_grad]
    setattr(model, prefix, copy_model(whole.base_model, share=frozen))
    if not small:  # the random weights that the body replaces were never drawn; those of the head are
        with seeded(seed):
            for name, part in model.named_children():
                if name != prefix:
                    part.to_empty(device="cpu").apply(model._init_weights)
    return model.to(backbone.device)


def merged(model):
    """The model itself, or a copy of it without adapters if it has some: their product added to the weights."""
    adapted = [name for name, part in model.named_modules() if hasattr(part, "base_layer") and hasattr(part, "merge")]
    if not adapted:
        return model
    model = copy.deepcopy(model)
    for name in adapted:
        part = model.get_submodule(name)
        part.merge()
        model.set_submodule(name, part.base_layer)
    return model


def read_folder(folder: str | Path, read: Callable):
    """(model, tokenizer) of a local folder, safetensors only. AlignkitError if that can't be."""
    with one_line(lambda why: f"could not load a reward model from {str(folder)!r}: {why}"):
        check_files(Path(folder))
        model = read(str(folder), use_safetensors=True, **SAFE)
        return model, AutoTokenizer.from_pretrained(str(folder), **SAFE)
