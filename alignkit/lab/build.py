"""Pretrain the shipped patients from their world's corpus: `alignkit build-models`.

Those of world "shapes" see: their captions are read with the picture beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from alignkit import worlds
from alignkit.errors import AlignkitError
from alignkit.pictures import PicturePolicy
from alignkit.policy import MODELS, Batch, Policy, load_policy, positions
from alignkit.rewards.texts import reader
from alignkit.worlds import authors
from alignkit.worlds.shapes import SIDE

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
DOCUMENTS, BATCH, RATE = 40_000, 96, 6e-3
STEPS = {"assistant": 1000, "arithmetic": 1300, "authors": 1350, "multitask": 1050}
MIXED = ("assistant", "arithmetic")  # of "multitask": the worlds whose documents it reads, as many of each
HIDDEN = {"small": 32, "large": 112}  # of the other sizes, "assistant-small" and "assistant-large"; else 64
SEQUENCES, LONG = 8_000, {"context": 256, "batch_size": 32, "rate": 4e-3}  # of "authors": several documents in a row

IMAGE, PATCH = "<image>", 12  # of "shapes"
CAPTIONS, CAPTION_STEPS, CAPTION_TRAINING = 16_000, 950, {"batch_size": 64, "rate": 1.5e-3}
ALIGNMENT = 0.37  # share of the steps on plain lists of what there is, from which seeing is learned

Documents = list[tuple[str, str]]


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


def _text_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, context: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        **_special_ids(tokenizer),
    )


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def make_policy(vocabulary: list[str], seed: int, hidden: int = 64, layers: int = 2, context: int = 96) -> Policy:
    """An untrained Llama of about 0.14 M parameters (at hidden 64, 2 layers) over this vocabulary."""
    tokenizer = make_tokenizer(vocabulary, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_text_config(tokenizer, hidden, layers, context))
    return Policy(model, tokenizer, name=f"seed {seed}")


def make_picture_policy(
    vocabulary: list[str], seed: int, hidden: int = 64, layers: int = 2, context: int = 96
) -> PicturePolicy:
    """An untrained Llava of about 0.2 M parameters: a CLIP tower, a projector and a Llama over this vocabulary."""
    tokenizer = make_tokenizer([IMAGE, *vocabulary], context)
    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        image_size=SIDE,
        patch_size=PATCH,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(tokenizer, hidden, layers, context),
        tie_word_embeddings=True,
        vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        **_special_ids(tokenizer),
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        # else the pictures enter so faintly that captions are learned without them
        for name, weight in model.named_parameters():
            if "projector" in name:
                weight.mul_(5)
            elif "language_model" in name and "proj" in name:
                weight.mul_(2)
    return PicturePolicy(model, tokenizer, name=f"seed {seed}")


def document_loss(policy: Policy, rows: Batch) -> torch.Tensor:
    """Next-token loss of whole documents, prompts included (nats a token)."""
    return policy.model(
        input_ids=rows.ids,
        attention_mask=rows.attention,
        position_ids=positions(rows.attention),
        labels=rows.ids.masked_fill(rows.attention == 0, -100),
        use_cache=False,
    ).loss


def caption_loss(policy: Policy, rows: Batch) -> torch.Tensor:
    """Next-token loss of completions alone, given what stands before them (nats a token)."""
    return -policy.token_logprobs(rows).sum() / rows.mask.sum()


def pretrain(
    policy: Policy,
    stages: list[tuple[int, Documents]],
    seed: int,
    progress: bool = True,
    loss_of: Callable[[Policy, Batch], torch.Tensor] = document_loss,
    batch_size: int = BATCH,
    rate: float = RATE,
) -> list[float]:
    """Next-token training, stages of (steps, documents) one after the other; returns each step's loss."""
    total = sum(steps for steps, _ in stages)
    optimizer = AdamW(policy.model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    # the shipped patients of two stages were trained with a schedule one step longer than they are
    schedule = OneCycleLR(optimizer, max_lr=rate, total_steps=total + (len(stages) > 1), pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    policy.model.train()
    losses = []
    with tqdm(total=total, desc=f"pretrain {policy.name}", disable=not progress, leave=False) as bar:
        for steps, documents in stages:
            batch = policy.encode(*map(list, zip(*documents, strict=True)))
            for _ in range(steps):
                rows = batch.rows(torch.randint(len(batch), (batch_size,), generator=generator))
                loss = loss_of(policy, rows)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
    policy.model.eval()
    return losses


def build_patient(world: str, seed: int, steps: int | None = None, progress: bool = True) -> Policy:
    """One patient, pretrained with everything (weights, corpus, order) drawn from `seed`.

    "assistant" and "arithmetic" start from nothing; "authors" goes on from the shipped "assistant" of the same seed,
    with words for principles, room for several documents, and sequences of one author each; "multitask" is one policy
    for two tasks, read in turn, with the words of both; "shapes" learns to see first and then to caption (these two
    are stored in half precision). A size after the world's name ("assistant-small", "assistant-large") changes the
    width alone; the large one is stored in half precision.
    """
    if world == "shapes":
        return _build_picture_patient(seed, steps or CAPTION_STEPS, progress)
    if world == "authors":
        return _build_author_reader(seed, steps or STEPS[world], progress)
    if world == "multitask":
        return _build_multitask(seed, steps or STEPS[world], progress)
    name, _, size = world.partition("-")
    if size and size not in HIDDEN:
        raise AlignkitError(f"no size {size!r} of {name!r}; there are {', '.join(HIDDEN)}, and {name!r} itself")
    w = worlds.load(name)
    policy = make_policy(w.vocabulary(), seed, hidden=HIDDEN[size] if size else 64)
    pretrain(policy, [(steps or STEPS[name], w.corpus(DOCUMENTS, seed))], seed, progress)
    if size == "large":
        policy.model.half()
    return policy


def _build_author_reader(seed: int, steps: int, progress: bool) -> Policy:
    options = dict(LONG)
    room = options.pop("context")
    policy = reader(load_policy("assistant", patient=seed), ["be", *authors.TRAIT_OF], context=room, seed=seed)
    policy.name = f"authors {seed}"
    texts = authors.sequences(worlds.load("assistant"), SEQUENCES, seed, words=room - 2)
    pretrain(policy, [(steps, [("", text) for text in texts])], seed, progress, **options)
    return policy


def _build_multitask(seed: int, steps: int, progress: bool) -> Policy:
    parts = [worlds.load(name) for name in MIXED]
    policy = make_policy(sorted({word for part in parts for word in part.vocabulary()}), seed)
    documents = [document for part in parts for document in part.corpus(DOCUMENTS // len(parts), seed)]
    pretrain(policy, [(steps, documents)], seed, progress)
    policy.model.half()
    return policy


def _build_picture_patient(seed: int, steps: int, progress: bool) -> PicturePolicy:
    """Sees first, from plain lists of what is in a picture, place by place; then learns captions from the corpus."""
    world = worlds.load("shapes")
    documents = world.corpus(CAPTIONS, seed)
    plain = [(prompt, world.caption(list(world.scene(prompt).values()))) for prompt, _ in documents]
    policy = make_picture_policy(world.vocabulary(), seed)
    first = max(1, round(ALIGNMENT * steps))
    stages = [(first, plain), (max(1, steps - first), documents)]
    pretrain(policy, stages, seed, progress, caption_loss, **CAPTION_TRAINING)
    policy.model.half()
    return policy


def build_models(
    world: str = "assistant", seeds=range(5), out: Path | None = None, steps: int | None = None
) -> list[Path]:
    """Pretrain and save `world`-0 ... `world`-4; returns their folders."""
    return [build_patient(world, s, steps).save(Path(out or MODELS) / f"{world}-{s}") for s in seeds]
