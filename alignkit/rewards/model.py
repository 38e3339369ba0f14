"""What all learned rewards share: a transformers backbone with a linear head, and the loop that fits it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import trange
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit.errors import AlignkitError
from alignkit.policy import Batch, Policy, load_policy, positions, shuffled_batches
from alignkit.rewards.base import Judgement, Reward, unique_rows
from alignkit.taxonomy import RewardCard

POOLINGS = ("mean", "last")


class RewardModel(Reward):
    """A linear head of K numbers on the backbone's hidden states. Subclasses set `kind` and bring a `fit`.

    `pooling` says which states the head reads: "mean" averages its output over the completion's tokens, "last" takes
    the last token (the convention of InstructGPT and TRL). Tiny backbones never learned to gather a whole answer in
    their last state, so "mean" is the default here. `history`: a DataFrame, one row a step.
    """

    #: what the card of this class says
    kind = {"name": "", "format": "scalar", "granularity": "response", "source": ""}

    def __init__(self, model, codec: Policy, pooling: str = "mean", name: str | None = None):
        if pooling not in POOLINGS:
            raise AlignkitError(f"{type(self).__name__}: pooling must be 'mean' or 'last', not {pooling!r}")
        self.model, self.codec, self.pooling = model.eval(), codec, pooling  # codec: for its tokenizer and context
        self.history = pd.DataFrame()
        card = {"construction_basis": "data-driven", "expression": "explicit", **self.kind}
        self.card = RewardCard(**{**card, "name": name or card["name"]})

    @classmethod
    def new(cls, backbone: Policy | str, seed: int = 0, pooling: str = "mean", outputs: int = 1):
        """The backbone's weights with a fresh head; the backbone itself is not changed."""
        backbone = load_policy(backbone) if isinstance(backbone, str) else backbone
        config = copy.deepcopy(backbone.model.config)
        config.num_labels, config.pad_token_id = outputs, backbone.tokenizer.pad_token_id
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(backbone.model.base_model.state_dict())
        return cls(model.to(backbone.device), backbone, pooling)

    def outputs_by_token(self, batch: Batch) -> Tensor:
        """The head's numbers at every token of the completions, shape (N, T, K); differentiable."""
        hidden = self.model.base_model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=positions(batch.attention),
            use_cache=False,
        ).last_hidden_state[:, -batch.mask.shape[1] :]
        return self.model.score(hidden)

    def outputs(self, batch: Batch) -> Tensor:
        """K numbers for each completion, shape (N, K); differentiable."""
        by_token, length = self.outputs_by_token(batch), batch.mask.sum(1)
        if self.pooling == "last":
            return by_token[torch.arange(len(by_token)), length - 1]
        return (by_token * batch.mask[..., None]).sum(1) / length[:, None]

    def forward(self, batch: Batch) -> Tensor:
        """Scores of a token batch, shape (N,): the first of the K numbers; differentiable."""
        return self.outputs(batch)[:, 0]

    def judge(self, prompts: list, completions: list[str], batch_size: int = 512) -> Judgement:
        return Judgement(self.predict(prompts, completions, batch_size)[:, 0])

    @torch.no_grad()
    def predict(self, prompts: list, completions: list[str], batch_size: int = 512) -> np.ndarray:
        """K numbers for each completion, shape (N, K), float64."""
        which, back = unique_rows(prompts, completions)
        out = torch.empty(len(which), self.model.config.num_labels)
        if which:
            batch = self.codec.encode([prompts[i] for i in which], [completions[i] for i in which])
            for part in batch.attention.sum(1).argsort().split(batch_size):  # by length: little padding in each part
                out[part] = self.outputs(batch.rows(part)).float().cpu()
        return out.double().numpy()[back]

    def train(
        self,
        loss_of: Callable[[Tensor], tuple[Tensor, dict]],
        lengths: Tensor,
        epochs: float = 2,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
        progress: bool = True,
        extra: tuple[Tensor, ...] = (),
    ):
        """The loop all fits share: AdamW, one-cycle learning rate, gradient norm at most 1. Returns self.

        `loss_of(index)` gives the loss of a minibatch of rows and what to note in the history; `lengths`: tokens of
        each row; `extra`: parameters to learn beside the model's (an ordinal model's thresholds).
        """
        parameters = [*self.model.parameters(), *extra]
        steps = max(1, round(epochs * len(lengths) / batch_size))
        optimizer = AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        schedule = OneCycleLR(optimizer, max_lr=learning_rate, total_steps=max(steps + 1, 11), pct_start=0.1)
        order = shuffled_batches(lengths, batch_size, steps, seed)
        rows = []
        self.model.train()
        for step in trange(steps, desc=f"fit {self.card.name}", disable=not progress, leave=False):
            loss, noted = loss_of(order[step])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            rows.append({"step": step, "loss": loss.item(), **noted})
        self.model.eval()
        self.history = pd.DataFrame(rows)
        return self

    def save(self, folder: str | Path) -> Path:
        """Write a transformers sequence-classification model with its tokenizer (safetensors).

        Other programs will read its score off the last token, which is this reward only if pooling is "last".
        """
        self.model.config.alignkit_pooling = self.pooling
        self.model.save_pretrained(folder)
        self.codec.tokenizer.save_pretrained(folder)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path):
        """Read what `save` wrote, or any local sequence-classification model with one label (pooling "last")."""
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                str(folder), use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            why = str(error).strip().splitlines()[0]
            raise AlignkitError(f"could not load a reward model from {str(folder)!r}: {why}") from error
        if cls.kind["format"] == "scalar" and model.config.num_labels != 1:
            raise AlignkitError(f"{str(folder)!r} has {model.config.num_labels} labels; a scalar reward needs one")
        return cls(model, Policy(model, tokenizer), getattr(model.config, "alignkit_pooling", "last"))
