"""Peak memory of training a real model, ours beside TRL's: python tests/memory.py [dpo dpo-lora grpo sequence_kl].

A random model of 0.27 B weights with 262,144 words (the shape of Gemma 3 270M), in float32 on the CPU; 96 pairs, or 128
completions a step. Each run is a process of its own, so that its largest resident set is its own. TRL's trainers keep
their defaults where memory is concerned (8 rows a device batch, gradient checkpointing), with as many rows a step.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIMIT = 8.0  # GB
RUNS = {"dpo": ("ours", "trl"), "dpo-lora": ("ours", "trl"), "grpo": ("ours", "trl"), "sequence_kl": ("ours",)}
WORDS, PROMPT, ANSWER = [f"w{i}" for i in range(500)], 8, 12
STEPS, NEW_TOKENS = 2, 16  # the second step has Adam's moments beside its activations


def policy():
    """The model with a tokenizer of its first few words."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from alignkit.lab.build import make_tokenizer
    from alignkit.policy import Policy

    tokenizer = make_tokenizer(WORDS, 512)
    config = Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Policy(Gemma3ForCausalLM(config), tokenizer, "random 0.27 B")


def data():
    """96 pairs of random words."""
    import numpy as np
    from datasets import Dataset

    rng = np.random.default_rng(0)
    sizes = {"prompt": PROMPT, "chosen": ANSWER, "rejected": ANSWER}
    return Dataset.from_dict({
        name: [" ".join(rng.choice(WORDS, rng.integers(size // 2, size + 1))) for _ in range(96)]
        for name, size in sizes.items()
    })  # fmt: skip


def various(prompts, completions, **_):
    """A reward: how many different words."""
    return [float(len(set(str(text).split()))) for text in completions]


def ours(name: str) -> None:
    from alignkit import evaluation, optimize

    model, pairs = policy(), data()
    if name.startswith("dpo"):
        if name.endswith("lora"):
            model = optimize.with_lora(model)
        optimize.dpo(model, pairs, epochs=STEPS / 3, batch_size=32, progress=False)
    elif name == "grpo":
        optimize.grpo(model, pairs["prompt"][:], various, steps=STEPS, max_new_tokens=NEW_TOKENS, progress=False)
    else:
        evaluation.sequence_kl(model, model, pairs["prompt"][:3])


def theirs(name: str) -> None:
    import peft
    import trl

    model, pairs = policy(), data()
    common = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "logging_strategy": "no", "max_steps": STEPS, "dataloader_pin_memory": False,
        "per_device_train_batch_size": 8,
    }  # fmt: skip
    if name.startswith("dpo"):
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear") if "lora" in name else None
        args = trl.DPOConfig(gradient_accumulation_steps=4, **common)
        made = trl.DPOTrainer(model.model, args=args, train_dataset=pairs, processing_class=model.tokenizer,
                              peft_config=lora, **({} if lora else {"ref_model": model.copy().model}))  # fmt: skip
    else:
        args = trl.GRPOConfig(gradient_accumulation_steps=16, beta=0.2, num_generations=16, **common,
                              max_completion_length=NEW_TOKENS)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:  # it loads its reference by the model's name
            model.save(folder)
            model.model.config._name_or_path = folder
            made = trl.GRPOTrainer(model.model, reward_funcs=various, args=args, processing_class=model.tokenizer,
                                   train_dataset=pairs.select_columns(["prompt"]))  # fmt: skip
    made.train()


def peak(name: str, side: str) -> float:
    """Gigabytes of a run in a process of its own."""
    done = subprocess.run([sys.executable, __file__, name, side], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["gigabytes"]


def main(names: list[str]) -> None:
    if len(names) == 2 and names[1] in ("ours", "trl"):
        {"ours": ours, "trl": theirs}[names[1]](names[0])
        print(json.dumps({"gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    for name in names or RUNS:
        found = {side: peak(name, side) for side in RUNS[name]}
        most = min(LIMIT, found.get("trl", LIMIT))
        sides = ", ".join(f"{side} {gigabytes:.1f} GB" for side, gigabytes in found.items())
        print(f"{name}: {sides}; {'as it should be' if found['ours'] <= most else 'TOO MUCH'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
