"""A policy is a transformers causal LM with its tokenizer: it samples completions and scores them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.errors import AlignkitError, ContextError
from alignkit.files import DATA

MODELS = DATA / "models"
Prompt = str | list[dict]  # plain text, or messages for a chat model


@dataclass
class Batch:
    """Token ids of prompts (left-padded) followed by completions (right-padded), ready for one forward pass.

    `ids` and `attention`: shape (N, P + T). `completion` and `mask`: shape (N, T); mask is 1 for tokens of the
    completion, its end-of-sequence token included.
    """

    ids: Tensor
    attention: Tensor
    completion: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index) -> Batch:
        """Some of the rows, trimmed to the longest of them on both sides."""
        attention, mask = self.attention[index], self.mask[index]
        prompt_width = self.ids.shape[1] - self.completion.shape[1]
        first = int(attention[:, :prompt_width].sum(1).max()) if len(mask) else 0
        last = int(mask.sum(1).max()) if len(mask) else 0
        keep = slice(prompt_width - first, prompt_width + last)
        return Batch(self.ids[index][:, keep], attention[:, keep], self.completion[index][:, :last], mask[:, :last])


@dataclass
class Rollout:
    """Sampled completions: texts, their token batch, and which of them ended before the limit; N = prompts x n."""

    prompts: list[Prompt]
    completions: list[str]
    batch: Batch
    ended: Tensor


class Policy:
    """Wraps `model` and `tokenizer`; `name` is for showing.

    `history` (a DataFrame, one row a step) and `spent` (what the treatment cost) are set by `alignkit.optimize`.
    """

    def __init__(self, model, tokenizer, name: str = "policy"):
        if tokenizer.eos_token_id is None:
            raise AlignkitError(f"the tokenizer of {name!r} has no end-of-sequence token; set tokenizer.eos_token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.history = None
        self.spent: dict[str, float] = {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """Longest sequence of tokens the model takes."""
        return getattr(self.model.config, "max_position_embeddings", None) or 2048

    def copy(self, name: str | None = None) -> Policy:
        """An independent copy: training it leaves this one as it is."""
        return Policy(copy.deepcopy(self.model), self.tokenizer, name or self.name)

    def save(self, folder: str | Path) -> Path:
        """Write model (safetensors) and tokenizer in the Hub's format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return Path(folder)

    # -- text to tokens ------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a string as it is, messages through the tokenizer's chat template."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        return self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)

    def completion_ids(self, completion: str, ended: bool = True) -> list[int]:
        """Token ids of a completion, followed by the end-of-sequence token if it ended."""
        ids = self.tokenizer(f" {completion}", add_special_tokens=False)["input_ids"] if completion else []
        return ids + [self.tokenizer.eos_token_id] * ended

    def encode(self, prompts: list[Prompt], completions: list[str], ended: bool = True) -> Batch:
        """Tokens of prompts and completions. ContextError names the first row that does not fit the context."""
        if len(prompts) != len(completions):
            raise AlignkitError(f"{len(prompts)} prompts but {len(completions)} completions: one each is needed")
        heads = [self.prompt_ids(p) for p in prompts]
        tails = [self.completion_ids(c, ended) for c in completions]
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            if len(head) + len(tail) > self.context:
                raise ContextError(
                    f"row {row}: prompt ({len(head)} tokens) and completion ({len(tail)}) exceed the context of "
                    f"{self.context} tokens of {self.name!r}; shorten or drop that row."
                )
        return self._pad(heads, tails)

    def _pad(self, heads: list[list[int]], tails: list[list[int]]) -> Batch:
        left, right = max(map(len, heads), default=0), max(map(len, tails), default=0)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor(
            [[pad] * (left - len(h)) + h + t + [pad] * (right - len(t)) for h, t in zip(heads, tails, strict=False)]
        )
        attention = torch.tensor([[0] * (left - len(h)) + [1] * (len(h) + len(t)) + [0] * (right - len(t))
                                  for h, t in zip(heads, tails, strict=False)])  # fmt: skip
        ids, attention = ids.to(self.device), attention.to(self.device)
        return Batch(ids, attention, ids[:, left:], attention[:, left:])

    # -- scoring -------------------------------------------------------------------------------------------------

    def logits(self, batch: Batch) -> Tensor:
        """Next-token logits at every position of the completions, shape (N, T, vocabulary); differentiable."""
        width = batch.completion.shape[1]
        hidden = self.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=positions(batch.attention),
            logits_to_keep=width + 1,
            use_cache=False,
        ).logits
        return hidden[:, :-1]

    def token_logprobs(self, batch: Batch) -> Tensor:
        """log pi(token | what came before) for completion tokens, 0 where masked; shape (N, T); differentiable."""
        logits = self.logits(batch).float()
        logp = -F.cross_entropy(logits.flatten(0, 1), batch.completion.flatten(), reduction="none")
        return logp.view_as(batch.completion) * batch.mask

    @torch.no_grad()
    def logprobs(self, prompts: list[Prompt], completions: list[str], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Per-token log-probabilities of completions (end-of-sequence included) and their mask, each (N, T)."""
        batch = self.encode(prompts, completions)
        rows = torch.arange(len(batch)).split(batch_size)
        out = torch.zeros_like(batch.mask, dtype=torch.float32)
        for part in rows:
            logp = self.token_logprobs(batch.rows(part))
            out[part, : logp.shape[1]] = logp
        return out, batch.mask

    # -- sampling ------------------------------------------------------------------------------------------------

    def sample(self, prompts: list[Prompt], n: int = 1, seed: int = 0, **options) -> list[list[str]]:
        """n completions for each prompt, as text. Options as in `rollout`."""
        flat = self.rollout(prompts, n, seed, **options).completions
        return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]

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

        Row i, token t consumes one uniform number fixed by (seed, i, t), so the result does not depend on batch_size.
        `temperature` 0 is greedy. Sampling stops at end-of-sequence or after max_new_tokens.
        """
        if not prompts or n < 1 or max_new_tokens < 1:
            raise AlignkitError(
                f"nothing to sample: {len(prompts)} prompts, n={n}, max_new_tokens={max_new_tokens}; all must be at "
                "least 1"
            )
        heads = [self.prompt_ids(p) for p in prompts]
        longest = max(map(len, heads), default=0)
        if longest + max_new_tokens > self.context:
            raise ContextError(
                f"prompt {[len(h) for h in heads].index(longest)} has {longest} tokens; with max_new_tokens="
                f"{max_new_tokens} it exceeds the context of {self.context} tokens of {self.name!r}."
            )
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(heads) * n, max_new_tokens, generator=generator, dtype=torch.float64)
        owner = torch.arange(len(heads)).repeat_interleave(n)
        tails = []
        for rows in torch.arange(len(owner)).split(batch_size):
            tails += self._sample_rows(heads, owner[rows], noise[rows].to(self.device), temperature)
        eos = self.tokenizer.eos_token_id
        ended = torch.tensor([bool(t) and t[-1] == eos for t in tails])
        texts = self.tokenizer.batch_decode([t[:-1] if e else t for t, e in zip(tails, ended, strict=False)],
                                            skip_special_tokens=True)  # fmt: skip
        everything = self._pad([heads[i] for i in owner], tails)
        return Rollout([prompts[i] for i in owner], [t.strip() for t in texts], everything, ended)

    def _sample_rows(self, heads, owner: Tensor, noise: Tensor, temperature: float) -> list[list[int]]:
        """Sample one batch of rows: each distinct prompt is read once, rows that ended are dropped on the way."""
        distinct, which = owner.unique(return_inverse=True)
        batch = self._pad([heads[i] for i in distinct], [[] for _ in distinct])
        out = self.model(input_ids=batch.ids, attention_mask=batch.attention, logits_to_keep=1,
                         position_ids=positions(batch.attention), use_cache=True)  # fmt: skip
        cache, logits, attention = out.past_key_values, out.logits[:, -1], batch.attention
        cache.batch_select_indices(which)
        logits, attention = logits[which], attention[which]
        position = attention.sum(1, keepdim=True)
        alive = torch.arange(len(owner), device=self.device)
        steps = noise.shape[1]
        tokens = torch.full((len(owner), steps), self.tokenizer.eos_token_id, device=self.device)
        lengths = torch.full((len(owner),), steps)
        for t in range(steps):
            token = _draw(logits, noise[alive, t], temperature)
            tokens[alive, t] = token
            going = token != self.tokenizer.eos_token_id
            lengths[alive[~going].cpu()] = t + 1
            if t + 1 == steps or not going.any():
                break
            if not going.all():
                keep = going.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, token, attention, position = alive[keep], token[keep], attention[keep], position[keep]
            attention = F.pad(attention, (0, 1), value=1)
            out = self.model(input_ids=token[:, None], attention_mask=attention, position_ids=position,
                             past_key_values=cache, use_cache=True)  # fmt: skip
            logits, position = out.logits[:, -1], position + 1
        return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=False)]


def positions(attention: Tensor) -> Tensor:
    """Position of each token counted from the first one that is not padding."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def check_same_vocabulary(policy: Policy, reference: Policy) -> None:
    """AlignkitError if the two do not share one vocabulary: their log-probabilities could not be compared."""
    if policy.tokenizer is reference.tokenizer and policy.model.config.vocab_size == reference.model.config.vocab_size:
        return
    mine, theirs = policy.tokenizer.get_vocab(), reference.tokenizer.get_vocab()
    sizes = policy.model.config.vocab_size, reference.model.config.vocab_size
    if mine == theirs and sizes[0] == sizes[1]:
        return
    only = sorted({*mine} ^ {*theirs})[:3]
    raise AlignkitError(
        f"{policy.name!r} ({sizes[0]} tokens) and its reference {reference.name!r} ({sizes[1]}) have different "
        f"vocabularies{f', such as {only}' if only else ''}; take a reference of the same family as the policy"
    )


def shuffled_batches(lengths: Tensor, batch_size: int, steps: int, seed: int) -> list[Tensor]:
    """Row indices of each of `steps` minibatches: shuffled passes over all rows, laid end to end.

    Rows of similar length share a minibatch, to spare padding: each window of 16 minibatches is sorted by length, cut,
    and its minibatches are shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(lengths)
    passes = -(-steps * batch_size // n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])[: steps * batch_size]
    batches = []
    for window in order.split(16 * batch_size):
        parts = window[lengths[window].argsort(stable=True)].split(batch_size)
        batches += [parts[i] for i in torch.randperm(len(parts), generator=generator)]
    return batches


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """One token a row by inverting the cumulative distribution at `uniform` in [0, 1)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def load_policy(name_or_path: str | Path, patient: int = 0, **options) -> Policy:
    """A shipped policy ("assistant", with `patient` 0-4), a folder in the Hub's format, or a Hub id.

    Shipped names and folders touch no network. Only safetensors are read, and no code from a model is run.
    AlignkitError lists what is shipped if the name is none of these.
    """
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
    return Policy(model, tokenizer, folder.name if local else source)


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
