"""Low-rank adapters: treat a large policy by training a few weights."""

from __future__ import annotations

from alignkit.errors import AlignkitError
from alignkit.policy import Policy


def with_lora(
    policy: Policy, rank: int = 8, alpha: int = 16, targets: str | list[str] = "all-linear", **options
) -> Policy:
    """The same policy with frozen weights and fresh adapters (2106.09685), which every method here then trains alone.

    The adapters start at zero: the policy speaks as before and is its own reference. `options` go to `peft.LoraConfig`.
    `save` writes the adapters only. Needs the package peft: pip install 'alignkit[lora]'.
    """
    try:
        import peft
    except ImportError as error:
        raise AlignkitError("with_lora needs the package peft: pip install 'alignkit[lora]'") from error
    if rank < 1:
        raise AlignkitError(f"with_lora: rank must be at least 1, not {rank}")
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "lora_dropout": 0.0, **options}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    copy = policy.copy()
    return Policy(peft.get_peft_model(copy.model, config), policy.tokenizer, f"{policy.name} (LoRA {rank})")
