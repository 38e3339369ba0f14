"""Every loop of phase 3 with causal LMs of other families, and with messages as prompts."""

import copy

import numpy as np
import pytest
import torch
import transformers
from conftest import weights_of

from alignkit import optimize
from alignkit.policy import Policy, Reading, draw
from alignkit.sampling import is_recurrent

QUICK = {
    **{"steps": 10, "epochs": 2, "minibatches": 2, "prompts_per_step": 4, "group_size": 8, "max_new_tokens": 8},
    **{"beta": 0.0, "learning_rate": 1e-2, "progress": False},
}


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 96}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
#: Families by config and model class, and what makes them small; "*": recurrent, "-": without a cache that can be cut.
FAMILIES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT),
    "neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", SIZE),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SIZE),
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZE),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**SIZE, "head_dim": 8, "sliding_window": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**SIZE, "sliding_window": 8}),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_head": 4, "n_layer": 2}),
    "opt": ("OPTConfig", "OPTForCausalLM", {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "mpt": ("MptConfig", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96}),
    "mamba*": ("MambaConfig", "MambaForCausalLM", MAMBA),
    "mamba2*": ("Mamba2Config", "Mamba2ForCausalLM",
                {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "falcon-mamba*": ("FalconMambaConfig", "FalconMambaForCausalLM", MAMBA),
    "lfm2*": ("Lfm2Config", "Lfm2ForCausalLM", {**SIZE, "layer_types": ["conv", "full_attention"]}),
    "qwen3-next*": ("Qwen3NextConfig", "Qwen3NextForCausalLM", {**SIZE, **DELTA, **EXPERTS}),
    "qwen3.5*": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**SIZE, **DELTA}),
    "jamba*": ("JambaConfig", "JambaForCausalLM",
               {**SIZE, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8,
                "use_mamba_kernels": False}),
    "bamba*": ("BambaConfig", "BambaForCausalLM", {**SIZE, **MAMBA2, "attn_layer_indices": [1]}),
    "falcon-h1*": ("FalconH1Config", "FalconH1ForCausalLM", {**SIZE, **MAMBA2, "mamba_d_ssm": 64}),
    "minimax*-": ("MiniMaxConfig", "MiniMaxForCausalLM",
                  {**SIZE, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2,
                   "head_dim": 8, "block_size": 8}),
    "rwkv*-": ("RwkvConfig", "RwkvForCausalLM", {**SIZE, "attention_hidden_size": 32, "context_length": 96}),
    "recurrent-gemma*-": ("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM",
                          {**SIZE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16}),
}  # fmt: skip


def untrained(name, tokenizer):
    """A policy of another family, whose logits depend on what it has read, with this tokenizer."""
    config, model, size = FAMILIES[name]
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    built = getattr(transformers, model)(getattr(transformers, config)(**size, **ids))
    return Policy(built, tokenizer, name)


@pytest.fixture(scope="module", params=["gpt2", "neox", "qwen2"])
def model(request, patient):
    return untrained(request.param, patient.tokenizer)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, patient):
    policy = untrained(request.param, patient.tokenizer)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.normal_(std=0.3)
    return policy


@torch.no_grad()
def alone(policy, prompt, tail):
    """Logits before each token of one completion, read without cache, padding or neighbors."""
    head = policy.prompt_ids(prompt)
    return policy.model(torch.tensor([head + tail]), use_cache=False).logits[0, len(head) - 1 : -1].float()


def test_every_family_samples_what_it_would_by_itself_and_is_scored_alike(family):
    """Prompts of two lengths, rows that end at different times: token by token the same draws as without any cache."""
    prompts, steps = ["please explain iron ?", "i want to learn about the heart , where do i start ?"], 10
    rollout = family.rollout(prompts, 5, seed=1, max_new_tokens=steps)
    assert is_recurrent(family.model) == ("*" in family.name)
    noise = torch.rand(10, steps, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        scored = family.token_logprobs(rollout.batch)
    agree, spread = [], []
    for row, (prompt, tail) in enumerate(zip(rollout.prompts, rollout.batch.tails, strict=True)):
        logits = alone(family, prompt, tail)
        agree.append(draw(logits, noise[row, : len(tail)], 1.0).tolist() == tail)
        logp = torch.log_softmax(logits, -1)[torch.arange(len(tail)), tail]
        torch.testing.assert_close(scored[row, : len(tail)], logp, atol=1e-4, rtol=0)
        spread.append(logits.softmax(-1).std(0).mean().item())
    assert sum(agree) >= 9  # one draw in ten may lie within rounding of a bound
    assert np.mean(spread) > 1e-6  # what comes next depends on what was read


def test_every_family_learns_by_a_pair_loss_and_by_policy_gradient(family, pairs, world):
    few = pairs.select(range(8))
    for treated in (
        optimize.dpo(family, few, epochs=1, batch_size=4, progress=False),
        optimize.rloo(family, world.prompts()[:2], early_letters, steps=1, prompts_per_step=2, group_size=4,
                      max_new_tokens=6, progress=False),
    ):  # fmt: skip
        assert weights_of(treated).isfinite().all()
        assert not torch.equal(weights_of(treated), weights_of(family))


def test_the_context_is_the_models_own_limit_or_else_the_tokenizers(family, patient):
    assert family.context == 96  # of some the model's, of Mamba and others the tokenizer's
    if family.name == "mamba*":
        tokenizer = copy.deepcopy(patient.tokenizer)
        tokenizer.model_max_length = 10**30  # transformers' word for none
        assert Policy(family.model, tokenizer).context == 10**9


def test_which_families_have_a_cache_that_rows_can_be_taken_from(family):
    ids = torch.tensor([family.prompt_ids("please explain iron ?")])
    with torch.no_grad():
        cache = Reading(family.model, ids, torch.ones_like(ids)).cache
    assert (cache is None) == family.name.endswith("-")


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
