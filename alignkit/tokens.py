"""From text to token ids to batches, as TRL makes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import Tensor

from alignkit.errors import AlignkitError, ContextError

Prompt = str | list[dict]  # plain text, or messages for a chat model
Completion = str | list[dict] | list[int]  # text, messages, or token ids that were sampled
Ended = bool | Sequence[bool] | Tensor  # whether a completion ended: one for all rows, or one a row
LOGITS = 2**27  # logits of one forward pass: 0.5 GB in float32


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

    @property
    def tails(self) -> list[list[int]]:
        """The token ids of each completion, without padding: what `Policy.encode` takes as they are."""
        return [row[:n] for row, n in zip(self.completion.tolist(), self.mask.sum(1).tolist(), strict=True)]


def as_rows(what: str, rows: Iterable) -> list:
    """The rows of the argument `what` as a list; AlignkitError if it is one text, one conversation or a data set."""
    columns = getattr(rows, "column_names", getattr(rows, "columns", None))
    if columns is not None:
        raise AlignkitError(f"`{what}` is a data set with the columns {list(columns)}; give one of them, as data[...]")
    if isinstance(rows, str | dict) or not isinstance(rows, Iterable):
        raise AlignkitError(f"`{what}` must be a list, one entry a row, not {type(rows).__name__}: {rows!r:.60}")
    rows = list(rows)
    if rows and isinstance(rows[0], dict) and "role" in rows[0]:
        raise AlignkitError(f"`{what}` is one conversation; give a list of conversations, such as [messages]")
    return rows


class Encoder:
    """The half of a policy that turns text into tokens; the other half has `tokenizer`, `name`, `device`, `context`."""

    def as_read(self, prompt: Prompt) -> Prompt:
        """The prompt as the model reads it; a policy with a context in front of every prompt adds it here."""
        return prompt

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt that is to be answered: text as it is, messages through the tokenizer's template."""
        return self._ids(self.as_read(prompt))

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        if not isinstance(prompt, Sequence) or not all(isinstance(turn, dict) for turn in prompt):
            raise AlignkitError(f"a prompt is text or messages, not {prompt!r:.60}")
        return self._templated(prompt, add_generation_prompt=True)

    def completion_ids(self, completion: str, ended: bool = True) -> list[int]:
        """Token ids of a text on its own, followed by the end-of-sequence token if it ended.

        What the same text becomes behind a prompt is told by `tokenize`: tokens may merge where the two meet.
        """
        ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"] if completion else []
        return ids + [self.tokenizer.eos_token_id] * (ended and ids[-1:] != [self.tokenizer.eos_token_id])

    def _templated(self, messages: list[dict], **options) -> list[int]:
        if not self.tokenizer.chat_template:
            raise AlignkitError("there are messages, but the tokenizer has no chat template; write prompts and "
                                "completions as text, or set tokenizer.chat_template")  # fmt: skip
        try:
            return self.tokenizer.apply_chat_template(messages, return_dict=False, **options)
        except (ValueError, TemplateError) as error:
            raise AlignkitError(f"the chat template does not take the messages {messages!r:.80}: {error}") from error

    def tokenize(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], ended: Ended = True
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of each prompt and of its completion, as TRL 1.16 makes them for SFT, KTO and reward models.

        Text behind text is joined as it stands, ended by the end-of-sequence token (unless it is there, or `ended` is
        False), and tokenized at once; so are messages behind messages, where the chat template adds what ends a turn.
        The completion begins at the first token that differs from the prompt tokenized alone (with the template's
        generation prompt). TRL's DPO lets both sides of a pair begin at the earlier place (`encode_pairs`); its reward
        trainer takes the same ids and knows no completion mask.

        TRL has not: text behind messages, which follows the generation prompt, tokenized on its own; token ids, taken
        as they are, `ended` or not; the tokenizer's `completion_prefix` (tokenizer_config.json) between text and text,
        for tokenizers that split at whitespace only, such as those of the worlds. Not read are the columns `tools` and
        `chat_template_kwargs`, which TRL hands to the template.
        """
        prompts = [self.as_read(prompt) for prompt in as_rows("prompts", prompts)]
        completions, n = as_rows("completions", completions), len(prompts)
        if n != len(completions):
            raise AlignkitError(f"{n} prompts but {len(completions)} completions: one each is needed")
        ended = [ended] * n if isinstance(ended, bool) else [bool(e) for e in ended]
        if len(ended) != n:
            raise AlignkitError(f"{n} rows but {len(ended)} values of `ended`: one each is needed, or one for all")
        heads: list[list[int]] = [[]] * n
        tails: list[list[int]] = [[]] * n
        texts = [i for i in range(n) if isinstance(prompts[i], str) and isinstance(completions[i], str)]
        if texts:
            prefix, end = self.tokenizer.init_kwargs.get("completion_prefix", ""), self.tokenizer.eos_token
            asked = [prompts[i] for i in texts]
            said = [prefix + completions[i] + end * (ended[i] and not completions[i].endswith(end)) for i in texts]
            alone = self.tokenizer(asked)["input_ids"]
            whole = self.tokenizer([head + tail for head, tail in zip(asked, said, strict=True)])["input_ids"]
            extra = 0 if all(ended) else self._appended()
            for i, head, ids in zip(texts, alone, whole, strict=True):
                heads[i], tails[i] = _parted(head, ids if ended[i] else ids[: len(ids) - extra])
        for i in {*range(n)} - {*texts}:
            heads[i], tails[i] = self._tokenize_row(i, prompts[i], completions[i], ended[i])
        return heads, tails

    def _appended(self) -> int:
        """How many special tokens the tokenizer itself puts behind a text."""
        whole, bare = self.tokenizer("a")["input_ids"], self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return next((len(whole) - i - len(bare) for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)

    def _tokenize_row(self, row: int, prompt: Prompt, completion: Completion, ended: bool):
        """`tokenize` for one row with messages or token ids."""
        head = self._ids(prompt)
        if isinstance(completion, str):
            return head, self.completion_ids(completion, ended)
        if not isinstance(completion, Sequence) or any(type(part) is not type(completion[0]) for part in completion):
            raise AlignkitError(f"row {row}: a completion is text, messages or token ids, not {completion!r:.60}")
        if not completion or isinstance(completion[0], int):
            return head, list(completion)
        if isinstance(prompt, str):
            raise AlignkitError(f"row {row}: the completion is messages, but the prompt is text; make both the same")
        return _parted(head, self._templated([*prompt, *completion], continue_final_message=not ended))

    def encode(self, prompts: Sequence[Prompt], completions: Sequence[Completion], ended: Ended = True) -> Batch:
        """The rows of `tokenize` as a batch. ContextError names the first row that does not fit the context."""
        return self._checked(*self.tokenize(prompts, completions, ended))

    def encode_pairs(
        self, prompts: Sequence[Prompt], chosen: Sequence[Completion], rejected: Sequence[Completion]
    ) -> Batch:
        """All chosen, then all rejected rows (2N), as TRL's DPO makes them: both sides begin at the same token.

        ContextError names the pair that does not fit.
        """
        prompts, sides = as_rows("prompts", prompts), as_rows("chosen", chosen) + as_rows("rejected", rejected)
        n = len(prompts)
        heads, tails = self.tokenize(prompts * 2, sides)
        starts = [min(len(a), len(b)) for a, b in zip(heads[:n], heads[n:], strict=True)] * 2
        for i, start in enumerate(starts):
            if len(heads[i]) > start:
                heads[i], tails[i] = heads[i][:start], heads[i][start:] + tails[i]
        return self._checked(heads, tails, n)

    def _checked(self, heads: list[list[int]], tails: list[list[int]], n: int | None = None) -> Batch:
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            if len(head) + len(tail) > self.context:
                raise ContextError(
                    f"row {row % (n or len(heads))}: prompt ({len(head)} tokens) and completion ({len(tail)}) exceed "
                    f"the context of {self.context} tokens of {self.name!r}; shorten or drop that row."
                )
        return self.pad(heads, tails)

    def pad(self, heads: list[list[int]], tails: list[list[int]]) -> Batch:
        """Token ids of prompts and completions as one batch."""
        left, right = max(map(len, heads), default=0), max(map(len, tails), default=0)
        rows, fill = list(zip(heads, tails, strict=True)), [self.tokenizer.pad_token_id]
        ids = [fill * (left - len(h)) + h + t + fill * (right - len(t)) for h, t in rows]
        attention = [[0] * (left - len(h)) + [1] * (len(h) + len(t)) + [0] * (right - len(t)) for h, t in rows]
        ids, attention = (torch.tensor(x, dtype=torch.long).view(len(rows), left + right).to(self.device)
                          for x in (ids, attention))  # fmt: skip
        return Batch(ids, attention, ids[:, left:], attention[:, left:])


def _parted(head: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """`whole` up to where it differs from `head`, at least its first token, which nothing predicts; and the rest."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(head, whole, strict=False))
    start = max(1, sum(1 for _ in same))
    return whole[:start], whole[start:]


def micro_batches(lengths: Tensor, vocabulary: int, rows: int, budget: int = LOGITS) -> list[Tensor]:
    """Row indices of consecutive micro-batches: at most `rows` rows and `budget` logits each, at least one row.

    `lengths` (N,): tokens of each row, in the order in which they are to be read; sort first, to spare padding. A
    micro-batch counts as (its rows) x (its longest row) x `vocabulary` logits. Where the budget doesn't bind, as for
    small vocabularies, the result is `torch.arange(N).split(rows)`.
    """
    parts = []
    for block in torch.arange(len(lengths)).split(max(1, rows)):
        first, longest, tokens = 0, 0, lengths[block.to(lengths.device)].tolist()
        if len(block) * max(tokens, default=0) * vocabulary <= budget:
            parts.append(block)
            continue
        for i, length in enumerate(tokens):
            longest = max(longest, length)
            if i > first and (i + 1 - first) * longest * vocabulary > budget:
                parts.append(block[first:i])
                first, longest = i, length
        parts.append(block[first:])
    return parts


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
