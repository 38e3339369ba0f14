"""A language model that is to read rewards: it may need words and room that its pretraining did not give it."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from tokenizers import AddedToken

from alignkit.errors import AlignkitError, DataError
from alignkit.policy import Policy, load_policy


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
        torch.manual_seed(seed)
        policy.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if context > policy.context:
        if getattr(config, "rope_parameters", None) is None:
            raise AlignkitError(
                f"{backbone.name!r} takes {policy.context} tokens and has no rotary positions, so it can't be made to "
                f"read {context}; shorten the texts or take another backbone"
            )
        config.max_position_embeddings = tokenizer.model_max_length = context
    return policy


def plain_prompts(prompts: Iterable) -> list[str]:
    """The prompts, if all are plain text; DataError naming the first row of messages."""
    prompts = list(prompts)
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise DataError(
                f"row {row}: the prompt is {type(prompt).__name__}, but it is read as part of a longer text; write "
                "messages out as one string"
            )
    return prompts
