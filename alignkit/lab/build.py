"""Pretrain the shipped patients from their world's corpus: `alignkit build-models`."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit import worlds
from alignkit.errors import AlignkitError
from alignkit.policy import MODELS, Policy, load_policy, positions
from alignkit.rewards.texts import reader
from alignkit.worlds import authors

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
DOCUMENTS, BATCH, RATE = 40_000, 96, 6e-3
STEPS = {"assistant": 1000, "arithmetic": 1300, "authors": 1350, "multitask": 1050}
MIXED = ("assistant", "arithmetic")  # of "multitask": the worlds whose documents it reads, as many of each
HIDDEN = {"small": 32, "large": 112}  # of the other sizes, "assistant-small" and "assistant-large"; else 64
SEQUENCES, LONG = 8_000, {"context": 256, "batch_size": 32, "rate": 4e-3}  # of "authors": several documents in a row


def make_tokenizer(vocabulary: list[str], context: int) -> PreTrainedTokenizerFast:
    """One token a word; a prompt gets <bos> in front, a completion follows after a space: only spaces part words."""
    words = {word: i for i, word in enumerate(SPECIAL + vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", words["<bos>"])])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        **names,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        completion_prefix=" ",
    )


def make_policy(vocabulary: list[str], seed: int, hidden: int = 64, layers: int = 2, context: int = 96) -> Policy:
    """An untrained Llama of about 0.14 M parameters (at hidden 64, 2 layers) over this vocabulary."""
    tokenizer = make_tokenizer(vocabulary, context)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return Policy(LlamaForCausalLM(config), tokenizer, name=f"seed {seed}")


def pretrain(
    policy: Policy, documents: list[tuple[str, str]], steps: int, seed: int, progress: bool = True,
    batch_size: int = BATCH, rate: float = RATE,
) -> float:  # fmt: skip
    """Next-token training on whole documents, prompts included; returns the mean loss (nats a token) at the end."""
    prompts, completions = map(list, zip(*documents, strict=True))
    batch = policy.encode(prompts, completions)
    optimizer = AdamW(policy.model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    policy.model.train()
    losses = []
    for _ in trange(steps, desc=f"pretrain {policy.name}", disable=not progress, leave=False):
        rows = batch.rows(torch.randint(len(batch), (batch_size,), generator=generator))
        labels = rows.ids.masked_fill(rows.attention == 0, -100)
        loss = policy.model(
            input_ids=rows.ids,
            attention_mask=rows.attention,
            position_ids=positions(rows.attention),
            labels=labels,
            use_cache=False,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    policy.model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def build_patient(world: str, seed: int, steps: int | None = None, progress: bool = True) -> Policy:
    """One patient, pretrained with everything (weights, corpus, order) drawn from `seed`.

    "assistant" and "arithmetic" start from nothing; "authors" goes on from the shipped "assistant" of the same seed,
    with words for principles, room for several documents, and sequences of one author each; "multitask" is one policy
    for two tasks, read in turn, with the words of both (stored in half precision). A size after the world's
    name ("assistant-small", "assistant-large") changes the width alone; the large one is stored in half precision.
    """
    if world == "shapes":
        from alignkit.lab.build_pictures import build_picture_patient

        return build_picture_patient(seed, steps, progress)
    if world == "authors":
        return _build_author_reader(seed, steps or STEPS[world], progress)
    if world == "multitask":
        return _build_multitask(seed, steps or STEPS[world], progress)
    name, _, size = world.partition("-")
    if size and size not in HIDDEN:
        raise AlignkitError(f"no size {size!r} of {name!r}; there are {', '.join(HIDDEN)}, and {name!r} itself")
    w = worlds.load(name)
    policy = make_policy(w.vocabulary(), seed, hidden=HIDDEN[size] if size else 64)
    pretrain(policy, w.corpus(DOCUMENTS, seed), steps or STEPS[name], seed, progress)
    if size == "large":
        policy.model.half()
    return policy


def _build_author_reader(seed: int, steps: int, progress: bool) -> Policy:
    options = dict(LONG)
    room = options.pop("context")
    policy = reader(load_policy("assistant", patient=seed), ["be", *authors.WORDS], context=room, seed=seed)
    policy.name = f"authors {seed}"
    texts = authors.sequences(worlds.load("assistant"), SEQUENCES, seed, words=room - 2)
    pretrain(policy, [("", text) for text in texts], steps, seed, progress, **options)
    return policy


def _build_multitask(seed: int, steps: int, progress: bool) -> Policy:
    parts = [worlds.load(name) for name in MIXED]
    policy = make_policy(sorted({word for part in parts for word in part.vocabulary()}), seed)
    documents = [document for part in parts for document in part.corpus(DOCUMENTS // len(parts), seed)]
    pretrain(policy, documents, steps, seed, progress)
    policy.model.half()
    return policy


def build_models(
    world: str = "assistant", seeds=range(5), out: Path | None = None, steps: int | None = None
) -> list[Path]:
    """Pretrain and save `world`-0 ... `world`-4; returns their folders."""
    return [build_patient(world, s, steps).save(Path(out or MODELS) / f"{world}-{s}") for s in seeds]
