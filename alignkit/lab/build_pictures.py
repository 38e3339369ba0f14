"""Pretrain the shipped patients that see: captions of world "shapes", with the picture beside them."""

from __future__ import annotations

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from alignkit import worlds
from alignkit.lab.build import make_tokenizer
from alignkit.pictures import PicturePolicy
from alignkit.worlds.shapes import SIDE

IMAGE = "<image>"
DOCUMENTS, BATCH, RATE = 16_000, 64, 1.5e-3
STEPS = 950
ALIGNMENT = 0.37  # share of the steps on plain lists of what there is, from which seeing is learned
PATCH, CONTEXT = 12, 96


def make_picture_policy(vocabulary: list[str], seed: int, hidden: int = 64, layers: int = 2) -> PicturePolicy:
    """An untrained Llava of about 0.2 M parameters: a CLIP tower, a projector and a Llama over this vocabulary."""
    tokenizer = make_tokenizer([IMAGE, *vocabulary], CONTEXT)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = dict(num_hidden_layers=layers, num_attention_heads=4)
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden,
                       num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
                       **shape, **ids)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=hidden, intermediate_size=2 * hidden, image_size=SIDE, patch_size=PATCH,
                              **shape)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=True, vision_feature_layer=-1,
                         image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), **ids)  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # else the pictures enter so faintly that captions are learned without them
        for name, weight in model.named_parameters():
            if "projector" in name:
                weight.mul_(5)
            elif "language_model" in name and "proj" in name:
                weight.mul_(2)
    return PicturePolicy(model, tokenizer, name=f"seed {seed}")


def pretrain_captions(
    policy: PicturePolicy, stages: list[tuple[int, list[tuple[str, str]]]], seed: int, progress: bool = True
) -> list[float]:
    """Next-token training on captions given their pictures, stages of (steps, documents) one after the other.

    Returns each step's loss (nats a token).
    """
    total = sum(steps for steps, _ in stages)
    optimizer = AdamW(policy.model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = OneCycleLR(optimizer, max_lr=RATE, total_steps=total + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    policy.model.train()
    losses = []
    with tqdm(total=total, desc=f"pretrain {policy.name}", disable=not progress, leave=False) as bar:
        for steps, documents in stages:
            batch = policy.encode(*map(list, zip(*documents, strict=True)))
            for _ in range(steps):
                rows = batch.rows(torch.randint(len(batch), (BATCH,), generator=generator))
                loss = -policy.token_logprobs(rows).sum() / rows.mask.sum()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
    policy.model.eval()
    return losses


def build_picture_patient(seed: int, steps: int | None = None, progress: bool = True) -> PicturePolicy:
    """One patient of world "shapes", with everything (weights, pictures, captions, order) drawn from `seed`.

    It learns to see from plain lists of what is in a picture, place by place, and then to caption from the corpus. The
    weights are rounded to half precision, in which they are shipped.
    """
    world, steps = worlds.load("shapes"), steps or STEPS
    documents = world.corpus(DOCUMENTS, seed)
    plain = [(prompt, world.caption(list(world.scene(prompt).values()))) for prompt, _ in documents]
    policy = make_picture_policy(world.vocabulary(), seed)
    first = max(1, round(ALIGNMENT * steps))
    pretrain_captions(policy, [(first, plain), (max(1, steps - first), documents)], seed, progress)
    policy.model.half()
    return policy
