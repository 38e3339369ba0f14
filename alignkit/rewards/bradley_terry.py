"""A Bradley-Terry reward model: a transformers backbone with a scalar head, fit to comparisons."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import trange
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit.errors import AlignkitError, ContextError, DataError
from alignkit.policy import Batch, Policy, load_policy, positions, shuffled_batches
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.losses import bradley_terry_loss
from alignkit.taxonomy import RewardCard


class BradleyTerry(Reward):
    """A linear head on the backbone's hidden states: a data-driven, scalar, explicit, response-level reward.

    `pooling` says which states the head reads: "mean" averages its output over the completion's tokens, "last" takes
    the last token (the convention of InstructGPT and TRL). Tiny backbones never learned to gather a whole answer in
    their last state, so "mean" is the default here. Scores are log-odds: sigmoid(r(x, y1) - r(x, y2)) is the modeled
    probability that y1 is preferred; they are identified only up to a constant for each prompt. `history`: a DataFrame,
    one row a step.
    """

    def __init__(self, model, codec: Policy, pooling: str = "mean", name: str = "bradley-terry"):
        if pooling not in ("mean", "last"):
            raise AlignkitError(f"BradleyTerry: pooling must be 'mean' or 'last', not {pooling!r}")
        self.model, self.codec, self.pooling = model.eval(), codec, pooling  # codec: for its tokenizer and context
        self.history = pd.DataFrame()
        self.card = RewardCard(
            name=name,
            construction_basis="data-driven",
            format="scalar",
            expression="explicit",
            granularity="response",
            source="2203.02155",
        )

    @classmethod
    def new(cls, backbone: Policy | str, seed: int = 0, pooling: str = "mean") -> BradleyTerry:
        """The backbone's weights with a fresh scalar head; the backbone itself is not changed."""
        backbone = load_policy(backbone) if isinstance(backbone, str) else backbone
        config = copy.deepcopy(backbone.model.config)
        config.num_labels, config.pad_token_id = 1, backbone.tokenizer.pad_token_id
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(backbone.model.base_model.state_dict())
        return cls(model.to(backbone.device), backbone, pooling)

    @classmethod
    def fit(
        cls,
        pairs: Dataset,
        backbone: Policy | str,
        epochs: float = 2,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        margin: str | None = None,
        pooling: str = "mean",
        seed: int = 0,
        progress: bool = True,
    ) -> BradleyTerry:
        """Fit to `prompt/chosen/rejected`; `margin` names a column of margins (larger = clearer preference)."""
        check_pairs(pairs, margin)
        reward = cls.new(backbone, seed, pooling)
        both = encode_pairs(reward.codec, pairs)
        margins = torch.tensor(pairs[margin][:] if margin else [0.0] * len(pairs), device=reward.model.device).float()
        steps = max(1, round(epochs * len(pairs) / batch_size))
        optimizer = AdamW(reward.model.parameters(), lr=learning_rate, weight_decay=weight_decay)
        schedule = OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps + 1, pct_start=0.1)
        order = shuffled_batches(pair_lengths(both), batch_size, steps, seed)
        rows = []
        reward.model.train()
        for step in trange(steps, desc="reward model", disable=not progress, leave=False):
            index = order[step]
            r_chosen, r_rejected = reward.forward(both.rows(torch.cat([index, index + len(pairs)]))).chunk(2)
            loss = bradley_terry_loss(r_chosen, r_rejected, margins[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reward.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            rows.append({"step": step, "loss": loss.item(), "accuracy": (r_chosen > r_rejected).float().mean().item()})
        reward.model.eval()
        reward.history = pd.DataFrame(rows)
        return reward

    def forward(self, batch: Batch) -> Tensor:
        """Scores of a token batch, shape (N,); differentiable."""
        hidden = self.model.base_model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=positions(batch.attention),
            use_cache=False,
        ).last_hidden_state[:, -batch.mask.shape[1] :]
        scores = self.model.score(hidden).squeeze(-1)  # one a token
        length = batch.mask.sum(1)
        if self.pooling == "last":
            return scores.gather(1, length[:, None] - 1).squeeze(1)
        return (scores * batch.mask).sum(1) / length

    @torch.no_grad()
    def judge(self, prompts: list, completions: list[str], batch_size: int = 512) -> Judgement:
        if not completions:
            return Judgement(np.zeros(0))
        distinct = list(dict.fromkeys(zip(map(str, prompts), completions, strict=True)))  # samples repeat: score once
        if isinstance(prompts[0], str) and len(distinct) < len(completions):
            known = dict(zip(distinct, self._score(*map(list, zip(*distinct, strict=False)), batch_size), strict=True))
            return Judgement(np.array([known[row] for row in zip(prompts, completions, strict=True)]))
        return Judgement(self._score(prompts, completions, batch_size))

    def _score(self, prompts: list, completions: list[str], batch_size: int) -> np.ndarray:
        batch = self.codec.encode(prompts, completions)
        by_length = batch.attention.sum(1).argsort()  # little padding in each part
        scores = torch.empty(len(batch))
        for rows in by_length.split(batch_size):
            scores[rows] = self.forward(batch.rows(rows)).float().cpu()
        return scores.double().numpy()

    def save(self, folder: str | Path) -> Path:
        """Write a transformers sequence-classification model with its tokenizer (safetensors).

        Other programs will read its score off the last token, which is this reward only if pooling is "last".
        """
        self.model.config.alignkit_pooling = self.pooling
        self.model.save_pretrained(folder)
        self.codec.tokenizer.save_pretrained(folder)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> BradleyTerry:
        """Read what `save` wrote, or any local sequence-classification model with one label (pooling "last")."""
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                str(folder), use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            why = str(error).strip().splitlines()[0]
            raise AlignkitError(f"could not load a reward model from {str(folder)!r}: {why}") from error
        if model.config.num_labels != 1:
            raise AlignkitError(f"{str(folder)!r} has {model.config.num_labels} labels; a scalar reward needs one")
        return cls(model, Policy(model, tokenizer), getattr(model.config, "alignkit_pooling", "last"))


def check_pairs(pairs: Dataset, margin: str | None = None) -> None:
    """DataError naming the column or row if these are not usable pairs."""
    needed = ["prompt", "chosen", "rejected", *([margin] if margin else [])]
    missing = [name for name in needed if name not in pairs.column_names]
    if missing:
        raise DataError(f"pairs need the columns {needed}; missing {missing}, found {pairs.column_names}")
    if not len(pairs):
        raise DataError("there are no pairs to fit: the data set is empty")
    check_texts(pairs, "chosen", "rejected")
    for row, value in enumerate(pairs[margin] if margin else []):
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise DataError(f"row {row}: {margin!r} is {value!r}, not a finite number; drop or mend that row")


def check_texts(data: Dataset, *sides: str) -> None:
    """DataError naming the row if a prompt is neither text nor messages, or one of the sides is not text."""
    for column in ("prompt", *sides):
        allowed = (str, list) if column == "prompt" else str
        for row, text in enumerate(data[column]):
            if not isinstance(text, allowed):
                raise DataError(f"row {row}: {column!r} is {type(text).__name__}, not text; drop or mend that row")


def encode_pairs(codec: Policy, pairs: Dataset) -> Batch:
    """The chosen sides, then the rejected sides, as one token batch of 2N rows."""
    prompts, chosen, rejected = pairs["prompt"][:], pairs["chosen"][:], pairs["rejected"][:]
    try:
        return codec.encode(prompts * 2, chosen + rejected)
    except ContextError:
        codec.encode(prompts, chosen)  # raises again, naming the row of the data set
        codec.encode(prompts, rejected)
        raise


def pair_lengths(both: Batch) -> Tensor:
    """Tokens of the longer side of each pair, shape (N,)."""
    return both.attention.sum(1).view(2, -1).amax(0)


def score_pairs(reward: Reward, pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected sides, each of shape (N,)."""
    prompts = pairs["prompt"][:]
    return reward(prompts, pairs["chosen"][:]).scores, reward(prompts, pairs["rejected"][:]).scores


def fit_temperature(reward: Reward, pairs: Dataset) -> float:
    """The T that makes sigmoid(gap / T) fit these held-out labels best (temperature scaling; Guo et al. 2017)."""
    chosen, rejected = score_pairs(reward, pairs)
    gap = chosen - rejected
    if np.all(gap == 0):
        raise AlignkitError(f"reward {reward.card.name!r} gives equal scores to every pair: there is nothing to scale")
    fit = minimize_scalar(lambda log_t: np.logaddexp(0, -gap / np.exp(log_t)).mean(), bounds=(-5, 5), method="bounded")
    return float(np.exp(fit.x))


def calibration_error(gap: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(|gap|) as the probability that the sign of the gap is right.

    gap = r_chosen - r_rejected, shape (N,); equal-width bins over confidence 0.5..1.
    """
    confidence = 1 / (1 + np.exp(-np.abs(gap)))
    right = np.where(gap == 0, 0.5, gap > 0)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    total = sum(abs(confidence[which == b].sum() - right[which == b].sum()) for b in range(bins))
    return float(total / len(gap))
