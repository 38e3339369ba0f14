"""Low-rank adapters: treat a large policy by training a few weights."""

from __future__ import annotations

from alignkit.errors import AlignkitError
from alignkit.policy import Policy


def with_lora(
    policy: Policy, rank: int = 8, alpha: int = 16, targets: str | list[str] = "all-linear", **options
) -> Policy:
    """The same policy with frozen weights and fresh adapters (2106.09685), which every method here then trains alone.

    The adapters start at zero: the policy speaks as before and is its own reference. `targets`: names of the layers
    that get one, such as ["q_proj", "v_proj"]; `options` go to `peft.LoraConfig`. `save` writes the adapters only;
    `load_policy` reads them as long as the base model is where it was. Needs the package peft: pip install
    'alignkit[lora]'.
    """
    try:
        import peft
    except ImportError as error:
        raise AlignkitError("with_lora needs the package peft: pip install 'alignkit[lora]'") from error
    if rank < 1:
        raise AlignkitError(f"with_lora: rank must be at least 1, not {rank}")
    if isinstance(policy.model, peft.PeftModel):
        raise AlignkitError(f"with_lora: {policy.name!r} has adapters already; treat it as it is")
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "lora_dropout": 0.0, **options}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    try:
        model = peft.get_peft_model(policy.copy().model, config)
    except ValueError as error:
        raise AlignkitError(f"with_lora: no adapters for targets {targets!r} of {policy.name!r}: {error}") from error
    return Policy(model, policy.tokenizer, f"{policy.name} (LoRA {rank})")
