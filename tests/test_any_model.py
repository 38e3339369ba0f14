"""Every loop of phase 3 with causal LMs of other families, and with messages as prompts."""

import copy

import numpy as np
import pytest
import torch
from conftest import weights_of
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

from alignkit import optimize
from alignkit.policy import Policy

FAMILIES = ("gpt2", "neox", "qwen2")
QUICK = {
    **{"steps": 10, "epochs": 2, "minibatches": 2, "prompts_per_step": 4, "group_size": 8, "max_new_tokens": 8},
    **{"beta": 0.0, "learning_rate": 1e-2, "progress": False},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, patient):
    """An untrained policy of another family with the patient's tokenizer."""
    torch.manual_seed(0)
    size = {"vocab_size": len(patient.tokenizer)}
    same = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    built = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=96, **size)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(max_position_embeddings=96, **same, **size)),
        "qwen2": lambda: Qwen2ForCausalLM(
            Qwen2Config(max_position_embeddings=96, num_key_value_heads=2, **same, **size)
        ),
    }
    return Policy(built[request.param](), patient.tokenizer, request.param)


def early_letters(prompts, completions):
    """Share of words from the first half of the alphabet: something even an untrained model can learn at once."""
    return [np.mean([w < "m" for w in c.split()]) if c else 0.0 for c in completions]


@pytest.mark.parametrize("method", ["rloo", "ppo", "gspo", "reinforce_plus_plus"])
def test_policy_gradients_raise_the_reward_of_any_causal_lm(model, world, method):
    before = weights_of(model)
    more = {"gspo": {"clip": 0.2, "clip_high": 0.2}}.get(method, {})
    treated = getattr(optimize, method)(model, world.prompts()[:8], early_letters, **QUICK, **more)
    assert treated.history["reward"][-2:].mean() > treated.history["reward"][:2].mean() + 0.05
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_preference_losses_fall_for_any_causal_lm(model, pairs, method):
    history = getattr(optimize, method)(model, pairs, epochs=2, learning_rate=3e-3, progress=False).history
    assert history["accuracy"][-5:].mean() > 0.6 and history["loss"][-5:].mean() < history["loss"][:5].mean()


def test_messages_are_prompts_like_any_other(patient, pairs, world):
    """The same run with text and with messages whose template says no more than the text."""
    tokenizer = copy.deepcopy(patient.tokenizer)
    tokenizer.chat_template = "<bos>{% for m in messages %} {{ m['content'] }}{% endfor %}"
    chat = Policy(patient.copy().model, tokenizer, "chat")

    def messages(text):
        return [{"role": "user", "content": text}]

    few = pairs.select(range(32))
    talked = few.map(lambda row: {"prompt": messages(row["prompt"])}, load_from_cache_file=False)
    plain, spoken = (optimize.dpo(p, d, epochs=1, progress=False) for p, d in ((patient, few), (chat, talked)))
    torch.testing.assert_close(weights_of(plain), weights_of(spoken))
    prompts = world.prompts()[:4]
    options = {"steps": 1, "prompts_per_step": 2, "group_size": 4, "progress": False}
    plain = optimize.rloo(patient, prompts, early_letters, **options)
    spoken = optimize.rloo(chat, [messages(p) for p in prompts], early_letters, **options)
    np.testing.assert_allclose(plain.history["reward"], spoken.history["reward"])
    torch.testing.assert_close(weights_of(plain), weights_of(spoken))
