"""Policies made of other policies' weights: adapters put on and merged, and averages."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.errors import AlignkitError, check_at_least, needs
from alignkit.policy import Policy, check_same_vocabulary, copy_model


def with_lora(policy: Policy, rank: int = 8, targets: str | list[str] = "all-linear", **options) -> Policy:
    """The same policy with frozen weights and fresh adapters (2106.09685), which every method here then trains alone.

    The adapters start at zero: the policy speaks as before and is its own reference. `targets`: names of the layers
    that get one, such as ["q_proj", "v_proj"]; `options`, such as lora_alpha=16, go to `peft.LoraConfig`. The frozen
    weights are those of `policy`, held once for it and for all copies. `save` writes the adapters only; `load_policy`
    reads them, to be used or trained on, as long as the base model is where it was; `merged` makes plain weights of
    them. Needs the package peft: pip install 'alignkit[lora]'.
    """
    with needs("lora"):
        import peft
    check_at_least("with_lora", 1, rank=rank)
    if policy.has_adapters:
        raise AlignkitError(f"with_lora: {policy.name!r} has adapters already; train them as they are, or merge them")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets, **{"lora_alpha": 16, **options})
    base = copy_model(policy.model, share=policy.model.parameters())
    base.requires_grad_(False)
    try:
        model = peft.get_peft_model(base, config)
    except ValueError as error:
        raise AlignkitError(f"with_lora: no adapters for targets {targets!r} of {policy.name!r}: {error}") from error
    return Policy(model, policy.tokenizer, f"{policy.name} (LoRA {rank})", policy.precision)


def merged(policy: Policy) -> Policy:
    """A policy of plain weights, to which the adapters have been added; the policy itself is left as it is."""
    if not policy.has_adapters:
        raise AlignkitError(f"merged: {policy.name!r} has no adapters; it is plain weights already")
    model = copy_model(policy.model).merge_and_unload()
    model.requires_grad_(True)
    return Policy(model, policy.tokenizer, policy.name, policy.precision)


def soup(policies: Sequence[Policy], weights: Sequence[float] | None = None, name: str = "soup") -> Policy:
    """The policy whose parameters are sum_k w_k theta_k, sum_k w_k = 1 (rewarded soups 2306.04488); default: the mean.

    Nothing is trained: from K policies treated for one objective each, every trade-off costs one sum. It takes policies
    of one architecture, and makes sense only for those that started from the same weights. Weights below 0 or above 1
    extrapolate, and are allowed. Of policies with adapters each matrix of the adapters is averaged, as in the paper,
    and not their product.
    """
    if not policies:
        raise AlignkitError("soup: no policies were given")
    weights = [1 / len(policies)] * len(policies) if weights is None else [float(w) for w in weights]
    if len(weights) != len(policies) or not abs(sum(weights) - 1) < 1e-6:
        raise AlignkitError(f"soup: {len(policies)} policies need as many weights, summing to 1, not {weights}")
    states = [policy.model.state_dict() for policy in policies]
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    for policy, shape in zip(policies, shapes, strict=True):
        check_same_vocabulary(policy, policies[0])
        if shape != shapes[0]:
            raise AlignkitError(f"soup: {policy.name!r} and {policies[0].name!r} are of different architectures")
    mixed = policies[0].copy(name)
    for key, value in mixed.model.state_dict().items():
        if value.is_floating_point() and value.data_ptr() != states[0][key].data_ptr():  # no frozen base, shared
            value.copy_(sum(w * state[key].double() for w, state in zip(weights, states, strict=True)))
    return mixed
