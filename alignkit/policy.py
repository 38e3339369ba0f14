"""A policy is a transformers causal LM with its tokenizer: it samples completions and scores them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignkit.errors import AlignkitError, ContextError, check_choice
from alignkit.loading import MODELS, load_model
from alignkit.sampling import Reading, continue_rows, draw, forward, is_recurrent, positions
from alignkit.tokens import LOGITS, Batch, Completion, Encoder, Prompt, as_rows, micro_batches, shuffled_batches

__all__ = [
    "MODELS", "Batch", "Completion", "Policy", "Prompt", "Reading", "Rollout", "check_same_vocabulary", "copy_model",
    "draw", "forward", "load_policy", "micro_batches", "positions", "shuffled_batches",
]  # fmt: skip
PRECISIONS = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Rollout:
    """Sampled completions: texts, their token batch, and which of them ended before the limit; N = prompts x n.

    To train on what was sampled, encode the ids: `policy.encode(rollout.prompts, rollout.batch.tails)`. To train on
    the texts, say which of them ended: `policy.encode(rollout.prompts, rollout.completions, rollout.ended)`.
    """

    prompts: list[Prompt]
    completions: list[str]
    batch: Batch
    ended: Tensor


class Policy(Encoder):
    """Wraps `model` and `tokenizer`; `name` is for showing.

    `precision` "bf16" or "fp16" runs forward passes under autocast; the weights keep their type. `logit_budget`: how
    many logits one forward pass may make (tokens x vocabulary), which bounds the memory of every method.
    `history` (a DataFrame, one row a step) and `spent` (what the treatment cost) are set by `alignkit.optimize`.
    """

    logit_budget = LOGITS

    def __init__(self, model, tokenizer, name: str = "policy", precision: str | None = None):
        if tokenizer.eos_token_id is None:
            raise AlignkitError(f"the tokenizer of {name!r} has no end-of-sequence token; set tokenizer.eos_token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        check_choice(name, "precision", precision, PRECISIONS)
        self.model, self.tokenizer, self.name, self.precision = model.eval(), tokenizer, name, precision
        self.history = None
        self.spent: dict[str, float] = {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """Longest sequence of tokens the model takes; without any limit of its own, as of Mamba, a billion."""
        config = self.model.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "context_length")
        own = filter(None, (getattr(config, name, None) for name in names))
        return next(own, min(self.tokenizer.model_max_length, 10**9))

    @property
    def vocabulary(self) -> int:
        """How many logits the model gives a token."""
        return self.model.config.get_text_config().vocab_size

    @property
    def ends(self) -> list[int]:
        """Tokens that end a completion: the tokenizer's end-of-sequence, and all of the model's generation_config."""
        more = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        more = more if isinstance(more, list | tuple) else [more]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *(int(token) for token in more if token is not None)]))

    def copy(self, name: str | None = None) -> Policy:
        """An independent copy: training it leaves this one as it is. With adapters, the frozen base is shared."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad] if self.has_adapters else []
        other = copy.copy(self)
        other.share(self, name or self.name)
        other.model = copy_model(self.model, share=frozen).eval()
        return other

    def share(self, policy: Policy, name: str) -> None:
        """Make this a policy with the very model, tokenizer and settings of `policy`, which may be read otherwise."""
        vars(self).update(vars(policy), name=name, history=None, spent={})

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.model, "peft_config")

    def save(self, folder: str | Path) -> Path:
        """Write model (safetensors) and tokenizer in the Hub's format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return Path(folder)

    # -- scoring -------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, batch: Batch) -> Iterator[None]:
        """Within it the model reads this batch, in this policy's precision."""
        with torch.autocast(self.device.type, PRECISIONS[self.precision]) if self.precision else nullcontext():
            yield

    def logits(self, batch: Batch) -> Tensor:
        """Next-token logits at every position of the completions, shape (N, T, vocabulary); differentiable."""
        width = batch.completion.shape[1]
        if is_recurrent(self.model):
            return self._logits_without_padding(batch)
        with self.reading(batch):
            out = forward(self.model, input_ids=batch.ids, attention_mask=batch.attention, use_cache=False,
                          position_ids=positions(batch.attention), logits_to_keep=width + 1)  # fmt: skip
        return out.logits[:, -width - 1 : -1]

    def _logits_without_padding(self, batch: Batch) -> Tensor:
        """For models with a state: rows begin at their first token, and all padding is behind them."""
        start = batch.attention.argmax(1, keepdim=True)
        place = torch.arange(batch.ids.shape[1], device=self.device) + start
        with self.reading(batch):
            out = forward(self.model, input_ids=batch.ids.gather(1, place % batch.ids.shape[1]), use_cache=False).logits
        width = batch.completion.shape[1]
        before = torch.arange(-width - 1, -1, device=self.device) + batch.ids.shape[1] - start
        return out.gather(1, before[..., None].expand(-1, -1, out.shape[-1]))

    def token_logprobs(self, batch: Batch) -> Tensor:
        """log pi(token | what came before) for completion tokens, 0 where masked; shape (N, T); differentiable.

        A batch of more than `logit_budget` logits is read `in_parts`.
        """

        def read(rows: Batch) -> Tensor:
            if not len(rows):
                return torch.zeros(rows.mask.shape, device=self.device)
            logits = self.logits(rows).float()
            logp = -F.cross_entropy(logits.flatten(0, 1), rows.completion.flatten(), reduction="none")
            return logp.view_as(rows.completion) * rows.mask

        return self.in_parts(batch, read)

    def in_parts(self, batch: Batch, read: Callable[[Batch], Tensor]) -> Tensor:
        """`read(rows)`, of shape (rows, T, ...), for all rows, in micro-batches of at most `logit_budget` logits.

        Where a gradient is wanted, each of them is read again in the backward pass (its logits and activations are not
        kept), so that memory stays that of one; the result is the same up to rounding. A batch that fits is read whole.
        """
        lengths, width = batch.attention.sum(1), batch.completion.shape[1]
        if len(micro_batches(lengths, self.vocabulary, len(batch), self.logit_budget)) <= 1:
            return read(batch)
        order, parts = lengths.argsort(), []
        for part in micro_batches(lengths[order], self.vocabulary, len(batch), self.logit_budget):
            rows = batch.rows(order[part])
            out = checkpoint(read, rows, use_reentrant=False) if torch.is_grad_enabled() else read(rows)
            parts.append(F.pad(out, (0, 0) * (out.ndim - 2) + (0, width - out.shape[1])))
        return torch.cat(parts)[order.argsort()]

    @torch.no_grad()
    def logprobs(self, prompts: list[Prompt], completions: list[Completion]) -> tuple[Tensor, Tensor]:
        """Per-token log-probabilities of completions (end-of-sequence included) and their mask, each (N, T)."""
        batch = self.encode(prompts, completions)
        return self.token_logprobs(batch), batch.mask

    # -- sampling ------------------------------------------------------------------------------------------------

    def sample(self, prompts: list[Prompt], n: int = 1, seed: int = 0, **options) -> list[list[str]]:
        """n completions for each prompt, as text. Options as in `rollout`."""
        flat = self.rollout(prompts, n, seed, **options).completions
        return [flat[i : i + n] for i in range(0, len(flat), n)]

    @torch.no_grad()
    def rollout(
        self,
        prompts: list[Prompt],
        n: int = 1,
        seed: int = 0,
        max_new_tokens: int = 48,
        temperature: float = 1.0,
        batch_size: int = 2048,
    ) -> Rollout:
        """Sample n completions for each prompt (N = prompts x n rows, a prompt's rows together).

        Row i, token t consumes one uniform number fixed by (seed, i, t), so the result depends on batch_size by
        rounding only: a token changes where its number lies within rounding of a bound between two tokens.
        `temperature` 0 is greedy. Sampling stops at any of the model's end tokens or after max_new_tokens.
        """
        prompts = as_rows("prompts", prompts)
        if not prompts or n < 1 or max_new_tokens < 1:
            raise AlignkitError(f"nothing to sample: {len(prompts)} prompts, n={n}, max_new_tokens={max_new_tokens}; "
                                "all must be at least 1")  # fmt: skip
        if not (math.isfinite(temperature) and temperature >= 0):
            raise AlignkitError(f"temperature must be 0 (greedy) or above, and finite, not {temperature}")
        heads = [self.prompt_ids(p) for p in prompts]
        longest = max(map(len, heads))
        if not all(heads):
            raise AlignkitError(
                f"prompt {heads.index([])} has no tokens, so nothing can be sampled behind it; {self.name!r} has no "
                "beginning-of-sequence token that would stand for it"
            )
        if longest + max_new_tokens > self.context:
            raise ContextError(
                f"prompt {[len(h) for h in heads].index(longest)} has {longest} tokens; with max_new_tokens="
                f"{max_new_tokens} it exceeds the context of {self.context} tokens of {self.name!r}."
            )
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(heads) * n, max_new_tokens, generator=generator, dtype=torch.float64)
        owner = torch.arange(len(heads)).repeat_interleave(n)
        tails = []
        for rows in torch.arange(len(owner)).split(min(batch_size, self._rows_at_once(longest + max_new_tokens))):
            tails += self.sample_rows(heads, owner[rows], noise[rows].to(self.device), temperature)
        ended = torch.tensor([bool(t) and t[-1] in self.ends for t in tails])
        texts = self.tokenizer.batch_decode([t[:-1] if e else t for t, e in zip(tails, ended, strict=True)],
                                            skip_special_tokens=True)  # fmt: skip
        return Rollout([prompts[i] for i in owner], texts, self.pad([heads[i] for i in owner], tails), ended)

    def _rows_at_once(self, length: int) -> int:
        """Rows of `length` tokens that are sampled together: each makes one token's logits at a time, and keeps two
        vectors a token and layer in the cache, of which there may be four times as many numbers."""
        config = self.model.config.get_text_config()
        kept = 2 * getattr(config, "num_hidden_layers", 32) * getattr(config, "hidden_size", 4096) * length
        return max(1, min(self.logit_budget // self.vocabulary, 4 * self.logit_budget // kept))

    def sample_rows(
        self, heads: list[list[int]], owner: Tensor, noise: Tensor, temperature: float = 1.0
    ) -> list[list[int]]:
        """Token ids sampled behind `heads[owner[i]]` for each row i, an end token included.

        `owner`: shape (rows,). `noise`: uniform numbers in [0, 1), shape (rows, max_new_tokens). Each distinct prompt
        is read once, and rows that ended are dropped on the way.
        """
        lengths = torch.tensor([len(heads[i]) for i in owner.tolist()])
        if is_recurrent(self.model) and len(lengths.unique()) > 1:  # no padding: by length
            parts = [(lengths == length).nonzero().squeeze(1) for length in lengths.unique()]
            tails = [tail for part in parts for tail in self.sample_rows(heads, owner[part], noise[part], temperature)]
            return [tails[i] for i in torch.cat(parts).argsort().tolist()]
        distinct, which = owner.unique(return_inverse=True)
        batch = self.pad([heads[i] for i in distinct], [[] for _ in distinct])
        with self.reading(batch):
            reading = Reading(self.model, batch.ids, batch.attention)
            reading.select(which.to(self.device))
            return continue_rows(reading, noise, temperature, torch.tensor(self.ends, device=self.device))


def copy_model(model: nn.Module, share: Iterable[nn.Parameter] = ()) -> nn.Module:
    """A deep copy of the model, but for the parameters in `share`: theirs is the same memory, to be left frozen."""
    kept = {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in share}
    return copy.deepcopy(model, kept)


def check_same_vocabulary(policy: Policy, reference: Policy) -> None:
    """AlignkitError if the two do not share one vocabulary: their log-probabilities could not be compared."""
    mine, theirs = policy.tokenizer.get_vocab(), reference.tokenizer.get_vocab()
    sizes = policy.vocabulary, reference.vocabulary
    if mine == theirs and sizes[0] == sizes[1]:
        return
    only = sorted({*mine} ^ {*theirs})[:3]
    raise AlignkitError(
        f"{policy.name!r} ({sizes[0]} tokens) and its reference {reference.name!r} ({sizes[1]}) have different "
        f"vocabularies{f', such as {only}' if only else ''}; take a reference of the same family as the policy"
    )


def load_policy(name_or_path: str | Path, patient: int = 0, precision: str | None = None, **options) -> Policy:
    """A shipped policy ("assistant", with `patient` 0-4), a folder in the Hub's format, or a Hub id.

    `precision`: as in `Policy`; `options`, such as dtype=torch.bfloat16, go to transformers' `from_pretrained`.
    Shipped names and folders touch no network. Only safetensors are read, and no code from a model is run.
    AlignkitError lists what is shipped if the name is none of these.
    """
    return Policy(*load_model(name_or_path, patient, **options), precision)
