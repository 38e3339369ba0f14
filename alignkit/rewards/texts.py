"""Text as rewards read and write it: what messages say, sentences, faults, the tokens of steps, a model that knows
such words."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from tokenizers import AddedToken

from alignkit.errors import AlignkitError, DataError
from alignkit.policy import Policy, load_policy
from alignkit.worlds.base import NOTHING, write_fault

FAULT = re.compile(r"sentence (\d+) is (\S+) \.")


def text_of(said: str | list, role: str) -> str:
    """Plain text: `said` itself, or the content of the last message of that `role` (else of the last message). Content
    in parts is the texts of its parts, put together; without content (a tool call) it is the empty text."""
    if isinstance(said, str):
        return said
    mine = [message for message in said if message["role"] == role] or list(said)
    content = mine[-1].get("content") if mine else ""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    return content or ""


def plain_prompts(prompts: Iterable) -> list[str]:
    """The prompts, if all are plain text; DataError naming the first row of messages."""
    for row, prompt in enumerate(prompts := list(prompts)):
        if not isinstance(prompt, str):
            raise DataError(f"row {row}: the prompt is {type(prompt).__name__}, but it is read as part of a longer "
                            "text; write messages out as one string")  # fmt: skip
    return prompts


def sentence_ends(completion: str) -> list[int]:
    """Where each sentence ends, in characters: after its full stop, or where the text was cut off."""
    ends = [match.end() for match in re.finditer(r"[.?!](?=\s|$)", completion)]
    return ends if completion[ends[-1] if ends else 0 :].strip() == "" else [*ends, len(completion)]


def sentences(completion: str) -> list[str]:
    """The sentences, each with its full stop; what was cut off at the end is one too."""
    ends = [0, *sentence_ends(completion)]
    return [completion[a:b].strip() for a, b in zip(ends, ends[1:], strict=False)]


def write_faults(faults: Sequence[str]) -> str:
    """["", "rude"] -> "sentence 2 is rude ."; one name a sentence, "" where nothing is wrong."""
    return " ".join(write_fault(place, name) for place, name in enumerate(faults, 1) if name) or NOTHING


def read_faults(critique: str) -> list[tuple[int, str]] | None:
    """(place, name) of each fault, places counted from 1; None if the text is anything but a list of faults. A grade at
    the end is passed over."""
    critique = re.sub(r"\s*grade \d+ of \d+ \.$", "", critique.strip())
    if critique in ("", NOTHING):
        return []
    if FAULT.sub("", critique).strip():
        return None
    return [(int(place), name) for place, name in FAULT.findall(critique)]


def parses(verdict: str) -> bool:
    """Whether a judge's verdict is made of known words only; "?" stands for the others."""
    return "?" not in verdict


def without_sentences(completion: str, places: Sequence[int]) -> str:
    """The completion without the sentences with these numbers."""
    return " ".join(text for place, text in enumerate(sentences(completion), 1) if place not in places)


def bare(text: str) -> str:
    """What all tokenizers keep of a text: no white space, no capitals."""
    return "".join(text.split()).casefold()


def token_ends(policy: Policy, ids: list[int], text: str) -> list[int]:
    """Where in the bare text each of its tokens ends, in characters.

    Tokens are read one by one and found in the text. Of those that can't be found (unknown words, parts of a character,
    pieces written with a mark of their own) the last ends where the next one that can be found begins, and the others
    where the one before them does.
    """
    whole, at, lost, ends = bare(text), 0, False, []
    for piece in map(bare, policy.tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True)):
        found = whole.find(piece, at) if piece else -1
        if found == at or (found > at and lost):
            if lost:
                ends[-1] = found
            at, lost = found + len(piece), False
        else:
            lost = True
        ends.append(at)
    return [*ends[:-1], len(whole)] if lost else ends


def step_tokens(policy: Policy, ids: list[int], text: str, ends: list[int]) -> list[int]:
    """Index of the token that ends each step of a text, of the token `ids` that were sampled or encoded; `ends` in
    characters. Steps are laid on tokens by counting characters; nothing is tokenized a second time."""
    goals = [len(bare(text[:end])) for end in ends]
    return np.searchsorted(token_ends(policy, ids, text), goals).clip(max=max(len(ids) - 1, 0)).tolist()


def reader(backbone: Policy | str, words: Iterable[str] = (), context: int = 0, seed: int = 0) -> Policy:
    """A copy of the policy, tokenizer included, to which each of `words` is one token, and that takes `context` tokens.

    A word that is no token yet becomes one, with a small random embedding drawn from `seed`. Only models with rotary
    positions take longer texts than they were made for; AlignkitError for the rest. Unlike `Policy.copy`, the
    tokenizer is not shared.
    """
    backbone = load_policy(backbone) if isinstance(backbone, str) else backbone
    policy = Policy(copy.deepcopy(backbone.model), copy.deepcopy(backbone.tokenizer), backbone.name)
    tokenizer, config = policy.tokenizer, policy.model.config
    ids = {word: policy.completion_ids(word, ended=False) for word in words}
    unknown = [word for word, tokens in ids.items() if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id]
    if unknown:
        tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in unknown])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            policy.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if context > policy.context:
        if getattr(config, "rope_parameters", None) is None:
            raise AlignkitError(f"{backbone.name!r} takes {policy.context} tokens and has no rotary positions, so it "
                                f"can't read {context}; shorten the texts or take another backbone")  # fmt: skip
        config.max_position_embeddings = tokenizer.model_max_length = context
    return policy
