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
from alignkit.errors import check_choice
from alignkit.pictures import PicturePolicy
from alignkit.policy import MODELS, Batch, Policy, load_policy, positions
from alignkit.rewards.texts import reader
from alignkit.worlds import authors
from alignkit.worlds.shapes import SIDE

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONTEXT, LAYERS, IMAGE, PATCH = 96, 2, "<image>", 12
STEPS = {"assistant": 1000, "assistant-small": 1000, "assistant-large": 1000, "arithmetic": 1300, "authors": 1350,
         "multitask": 1050, "shapes": 950}  # fmt: skip
HIDDEN, OTHER_HIDDEN = 64, {"assistant-small": 32, "assistant-large": 112}
DOCUMENTS, BATCH, RATE = 40_000, 96, 6e-3
HALF = ("assistant-large", "multitask", "shapes")  # stored in half precision
MIXED = ("assistant", "arithmetic")  # of "multitask": the worlds whose documents it reads, as many of each
SEQUENCES, LONG = 8_000, {"context": 256, "batch_size": 32, "rate": 4e-3}  # of "authors": several documents in a row
CAPTIONS, CAPTION_TRAINING = 16_000, {"batch_size": 64, "rate": 1.5e-3}
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
        **SPECIAL_IDS,
    )


def make_policy(vocabulary: list[str], seed: int, hidden=HIDDEN, layers=LAYERS, context=CONTEXT) -> Policy:
    """An untrained Llama of about 0.14 M parameters (at hidden 64, 2 layers) over this vocabulary."""
    tokenizer = make_tokenizer(vocabulary, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_text_config(tokenizer, hidden, layers, context))
    return Policy(model, tokenizer, name=f"seed {seed}")


def make_picture_policy(vocabulary: list[str], seed: int) -> PicturePolicy:
    """An untrained Llava of about 0.2 M parameters: a CLIP tower, a projector and a Llama over this vocabulary."""
    tokenizer = make_tokenizer([IMAGE, *vocabulary], CONTEXT)
    text = _text_config(tokenizer, HIDDEN, LAYERS, CONTEXT)
    vision = CLIPVisionConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        tie_word_embeddings=True,
        vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        **SPECIAL_IDS,
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
    labels = rows.ids.masked_fill(rows.attention == 0, -100)
    return policy.model(rows.ids, rows.attention, positions(rows.attention), labels=labels, use_cache=False).loss


def caption_loss(policy: Policy, rows: Batch) -> torch.Tensor:
    """Next-token loss of completions alone, given what stands before them (nats a token)."""
    return -policy.token_logprobs(rows).sum() / rows.mask.sum()


def pretrain(
    policy: Policy,
    stages: list[tuple[int, Documents]],
    seed: int,
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
    with tqdm(total=total, desc=f"pretrain {policy.name}", disable=None, leave=False) as bar:
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


def build_patient(name: str, seed: int, steps: int | None = None) -> Policy:
    """One patient, pretrained with everything (weights, corpus, order) drawn from `seed`.

    "assistant" and "arithmetic" start from nothing; "authors" goes on from the shipped "assistant" of the same seed,
    with words for principles, room for several documents, and sequences of one author each; "multitask" is one policy
    for two tasks, read in turn, with the words of both; "shapes" learns to see first and then to caption;
    "assistant-small" and "assistant-large" differ in width alone.
    """
    check_choice("build-models", "world", name, STEPS)
    steps = steps or STEPS[name]
    if name == "authors":
        policy = _author_reader(seed, steps)
    elif name == "shapes":
        policy = _captioner(seed, steps)
    else:
        parts = [worlds.load(part) for part in (MIXED if name == "multitask" else [name.partition("-")[0]])]
        words = sorted({word for part in parts for word in part.vocabulary()})
        policy = make_policy(words, seed, OTHER_HIDDEN.get(name, HIDDEN))
        documents = [document for part in parts for document in part.corpus(DOCUMENTS // len(parts), seed)]
        pretrain(policy, [(steps, documents)], seed)
    if name in HALF:
        policy.model.half()
    return policy


def _author_reader(seed: int, steps: int) -> Policy:
    room = LONG["context"]
    policy = reader(load_policy("assistant", patient=seed), ["be", *authors.TRAIT_OF], context=room, seed=seed)
    policy.name = f"authors {seed}"
    texts = authors.sequences(worlds.load("assistant"), SEQUENCES, seed, words=room - 2)
    documents = [("", text) for text in texts]
    pretrain(policy, [(steps, documents)], seed, batch_size=LONG["batch_size"], rate=LONG["rate"])
    return policy


def _captioner(seed: int, steps: int) -> PicturePolicy:
    """Sees first, from plain lists of what is in a picture, place by place; then learns captions from the corpus."""
    world = worlds.load("shapes")
    documents = world.corpus(CAPTIONS, seed)
    plain = [(prompt, world.caption(list(world.scene(prompt).values()))) for prompt, _ in documents]
    policy = make_picture_policy(world.vocabulary(), seed)
    first = max(1, round(ALIGNMENT * steps))
    pretrain(policy, [(first, plain), (max(1, steps - first), documents)], seed, caption_loss, **CAPTION_TRAINING)
    return policy


def build_models(
    world: str = "assistant", seeds=range(5), out: Path | None = None, steps: int | None = None
) -> list[Path]:
    """Pretrain and save `world`-0 ... `world`-4; returns their folders."""
    return [build_patient(world, s, steps).save(Path(out or MODELS) / f"{world}-{s}") for s in seeds]
