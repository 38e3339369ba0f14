"""Sampling and scoring agree with each other and with transformers, and no result depends on batching."""

import copy
import itertools
import json
import socket

import numpy as np
import pytest
import torch
from conftest import weights_of
from scipy import stats
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from alignkit import loading, optimize, rewards, sampling
from alignkit.errors import AlignkitError, ContextError
from alignkit.lab.build import make_policy
from alignkit.policy import Policy, copy_model, draw, load_policy, shuffled_batches

SHORT, LONG = "please explain iron ?", "i want to learn about the heart , where do i start ?"


def gpt2(tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=96)
    return GPT2LMHeadModel(config)


def qwen2(tokenizer):
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
    )
    return Qwen2ForCausalLM(config)


@pytest.fixture(scope="module", params=[gpt2, qwen2], ids=lambda f: f.__name__)
def other_kind(request, tiny):
    """A policy of another architecture, with logits far from uniform."""
    torch.manual_seed(0)
    model = request.param(tiny.tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    return Policy(model, tiny.tokenizer, request.param.__name__)


@pytest.fixture
def chat(patient):
    """The patient with a chat template that says no more than the plain prompt does."""
    tokenizer = copy.deepcopy(patient.tokenizer)
    tokenizer.chat_template = "<bos>{% for m in messages %} {{ m['content'] }}{% endfor %}"
    return Policy(patient.model, tokenizer)


@torch.no_grad()
def naive_logprobs(policy, prompt, completion):
    """One row, no padding, no cache: the definition."""
    head, tail = policy.prompt_ids(prompt), policy.completion_ids(completion)
    logits = policy.model(torch.tensor([head + tail])).logits[0]
    return torch.log_softmax(logits, -1)[torch.arange(len(head) - 1, len(head) + len(tail) - 1), tail]


# -- nothing depends on batching --------------------------------------------------------------------


def test_samples_do_not_depend_on_batch_size(world, patient):
    prompts = world.prompts("treatment")[::7]
    texts = patient.sample(prompts, 5, seed=3)
    assert texts == patient.sample(prompts, 5, seed=3, batch_size=7)
    assert len(texts) == len(prompts) and all(len(t) == 5 for t in texts)


def test_samples_do_not_depend_on_the_padding_that_neighbors_need(patient):
    assert patient.sample([SHORT], 4, seed=1)[0] == patient.sample([SHORT, LONG], 4, seed=1)[0]


def test_logprobs_do_not_depend_on_batch_size_or_padding(world, patient):
    prompts, completions = map(list, zip(*world.corpus(40, seed=5), strict=True))
    logp, mask = patient.logprobs(prompts, completions)
    frugal = patient.copy()
    frugal.logit_budget = 100 * patient.vocabulary
    parts, _ = frugal.logprobs(prompts, completions)
    torch.testing.assert_close(parts, logp, atol=1e-5, rtol=0)
    for i in range(40):
        alone = naive_logprobs(patient, prompts[i], completions[i])
        assert mask[i].sum() == len(alone)
        torch.testing.assert_close(logp[i, : len(alone)], alone, atol=1e-5, rtol=0)
        assert (logp[i, len(alone) :] == 0).all()


def test_trimming_rows_drops_padding_only(world, patient):
    prompts, completions = map(list, zip(*world.corpus(30, seed=6), strict=True))
    batch = patient.encode(prompts, completions)
    index = torch.tensor([4, 17, 2])
    rows = batch.rows(index)
    for row, i in enumerate(index):
        for got, whole in (
            (rows.ids[row][rows.attention[row] == 1], batch.ids[i][batch.attention[i] == 1]),
            (rows.completion[row][rows.mask[row] == 1], batch.completion[i][batch.mask[i] == 1]),
        ):
            assert torch.equal(got, whole)
    assert rows.attention.any(0).all() and rows.mask.any(0).all()  # no column is padding throughout
    assert rows.ids.shape[1] < batch.ids.shape[1]


# -- sampling agrees with scoring -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_models_distribution(toy, temperature):
    n, vocabulary, eos = 20_000, len(toy.tokenizer), toy.tokenizer.eos_token_id
    rollout = toy.rollout(["a b"], n, seed=2, max_new_tokens=2, temperature=temperature)
    tokens = [
        tuple(row[keep == 1].tolist()) for row, keep in zip(rollout.batch.completion, rollout.batch.mask, strict=True)
    ]
    expected, head = {}, toy.prompt_ids("a b")
    with torch.no_grad():
        first = torch.softmax(toy.model(torch.tensor([head])).logits[0, -1].double() / temperature, -1)
        for a in range(vocabulary):
            second = torch.softmax(toy.model(torch.tensor([[*head, a]])).logits[0, -1].double() / temperature, -1)
            expected |= {(a, b): (first[a] * second[b]).item() for b in range(vocabulary)}
    expected = {k: p for k, p in expected.items() if k[0] != eos} | {(eos,): first[eos].item()}
    assert set(tokens) <= set(expected) and sum(expected.values()) == pytest.approx(1)
    common = [k for k, p in expected.items() if n * p >= 5]
    counts = np.array([tokens.count(k) for k in common] + [0.0])
    share = np.array([n * expected[k] for k in common] + [0.0])
    counts[-1], share[-1] = n - counts.sum(), n - share.sum()
    assert len(common) > 2 and share.max() > 2 * n / len(expected)  # enough to compare, far from uniform
    assert stats.chisquare(counts, share).pvalue > 0.001


def test_logprobs_are_a_distribution_over_completions(toy):
    words = toy.tokenizer.convert_ids_to_tokens(range(len(toy.tokenizer)))
    words.remove(toy.tokenizer.eos_token)
    with torch.no_grad():
        shorter = [" ".join(w) for k in (0, 1) for w in itertools.product(words, repeat=k)]
        ended = sum(toy.logprobs(["a"], [c])[0].sum().exp() for c in shorter)
        batch = toy.encode(
            ["a"] * len(words) ** 2, [" ".join(w) for w in itertools.product(words, repeat=2)], ended=False
        )
        going = toy.token_logprobs(batch).sum(1).exp().sum()
    assert (ended + going).item() == pytest.approx(1, abs=1e-5)


def test_logprobs_of_a_rollout_equal_those_of_its_text(world, patient):
    rollout = patient.rollout(world.prompts("seen"), 2, seed=4, max_new_tokens=30)
    with torch.no_grad():
        sampled = patient.token_logprobs(rollout.batch).sum(1)
    from_text = patient.logprobs(rollout.prompts, rollout.completions)[0].sum(1)
    ended = rollout.ended
    assert 0.5 < ended.float().mean() < 1
    torch.testing.assert_close(sampled[ended], from_text[ended], atol=1e-4, rtol=0)
    assert (sampled[~ended] > from_text[~ended]).all()  # the text's end was not sampled
    assert (rollout.batch.mask[~ended].sum(1) == 30).all()


def test_greedy_is_what_transformers_generates(patient):
    rollout = patient.rollout([SHORT, LONG], 2, seed=9, temperature=0)
    assert rollout.completions[0] == rollout.completions[1] and rollout.completions[2] == rollout.completions[3]
    for prompt, completion in zip(rollout.prompts, rollout.completions, strict=True):
        ids = torch.tensor([patient.prompt_ids(prompt)])
        out = patient.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48)
        assert patient.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == completion


def test_a_large_vocabulary_is_drawn_from_in_parts_with_the_same_result(monkeypatch):
    logits, uniform = torch.randn(40, 300), torch.rand(40, dtype=torch.float64)
    whole = draw(logits, uniform, 0.7)
    monkeypatch.setattr(sampling, "LOGITS", 16 * 300 * 7)
    assert torch.equal(draw(logits, uniform, 0.7), whole) and len(whole.unique()) > 10


def test_seeds_reproduce_and_differ(patient):
    first = patient.sample([SHORT], 8, seed=5)
    assert first == patient.sample([SHORT], 8, seed=5) != patient.sample([SHORT], 8, seed=6)
    assert len(set(first[0])) > 4


def test_shuffled_batches_visit_every_row_equally_often_and_keep_like_lengths_together():
    lengths = torch.tensor([5, 50] * 20)
    batches = shuffled_batches(lengths, 4, 20, seed=0)
    assert [len(b) for b in batches] == [4] * 20
    assert torch.cat(batches).bincount().tolist() == [2] * 40
    assert sum(len(lengths[b].unique()) > 1 for b in batches) <= 2  # at most one mixed batch a window
    assert not all(torch.equal(a, b) for a, b in zip(batches, shuffled_batches(lengths, 4, 20, seed=1), strict=True))


# -- copies and files -------------------------------------------------------------------------------


def test_a_copy_is_independent(tiny):
    before = weights_of(tiny)
    other = tiny.copy("other")
    with torch.no_grad():
        for p in other.model.parameters():
            p.add_(1)
    assert torch.equal(weights_of(tiny), before) and other.name == "other"


def test_copies_of_adapters_share_the_frozen_base_and_nothing_else(patient):
    peft = pytest.importorskip("peft")
    base = copy_model(patient.model, share=patient.model.parameters())
    adapted = Policy(peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2)), patient.tokenizer)
    other = adapted.copy()
    places = [{n: p.data_ptr() for n, p in policy.model.named_parameters()} for policy in (adapted, other)]
    assert {n for n in places[0] if places[0][n] == places[1][n]} == {n for n in places[0] if "lora_" not in n}
    with torch.no_grad():
        for name, weight in other.model.named_parameters():
            if "lora_" in name:
                weight.add_(0.1)
    batch = patient.encode([SHORT, LONG], ["salt .", "iron ."])
    before = patient.token_logprobs(batch)
    assert (other.token_logprobs(batch) - before).abs().max() > 0.01
    torch.testing.assert_close(adapted.token_logprobs(batch), before)
    changed = other.sample([SHORT], 3)
    with other.model.disable_adapter():
        torch.testing.assert_close(other.token_logprobs(batch), before)
        assert other.sample([SHORT], 3) == patient.sample([SHORT], 3) != changed
    assert all(p.requires_grad for p in patient.model.parameters())


def test_save_and_load_is_a_round_trip_in_the_hubs_format(patient, tmp_path):
    folder = patient.save(tmp_path / "mine")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in folder.iterdir()}
    loaded = load_policy(folder)
    assert torch.equal(weights_of(loaded), weights_of(patient)) and loaded.name == "mine"
    assert loaded.sample([SHORT, LONG], 3, seed=1) == patient.sample([SHORT, LONG], 3, seed=1)
    assert isinstance(LlamaForCausalLM.from_pretrained(folder), LlamaForCausalLM)


def test_shipped_names_load_without_a_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    patients = [load_policy("assistant", patient=k) for k in range(5)]
    assert len({weights_of(p).sum().item() for p in patients}) == 5
    assert torch.equal(weights_of(load_policy("assistant", patient=7)), weights_of(patients[2]))


def test_a_path_is_never_taken_for_a_shipped_name(tiny, tmp_path):
    tiny.save(tmp_path / "mine-0")
    with pytest.raises(AlignkitError, match="no such folder"):
        load_policy(tmp_path / "mine")


@pytest.mark.parametrize("name", ["asistant", "./no/such/folder", "/no/such/folder", "~/model", "a/b/c"])
def test_a_name_that_is_nothing_gets_the_list_of_what_is_shipped(name):
    with pytest.raises(AlignkitError, match=rf"{name}.*Give a shipped name \(arithmetic, assistant, .*\).*Hub id"):
        load_policy(name)


def test_a_hub_id_out_of_reach_says_so():
    with pytest.raises(AlignkitError, match="nobody/nothing.*needs a network or a local cache"):
        load_policy("nobody/nothing")


def only_pickle(folder, model):
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def indexed(folder, model, name):
    """The weights under another name, to which an index points."""
    (folder / "model.safetensors").rename(folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def overwritten(folder, model):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-400] + b"\xff" * 400)


def configured(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def classifier(folder, model):
    LlamaForSequenceClassification(model.config).save_pretrained(folder)


def encoder(folder, model):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=model.config.vocab_size, **size)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder, _: [f.unlink() for f in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder, _: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder, _: (folder / "config.json").unlink(), "config.json"),
        (lambda folder, _: (folder / "config.json").write_text("{ not json"), "config.json"),
        (lambda folder, _: (folder / "model.safetensors").write_bytes(b"cut off"), "model.safetensors is damaged"),
        (
            lambda folder, _: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
            "model.safetensors is a Git LFS pointer",
        ),
        (only_pickle, "model.safetensors"),
        (lambda folder, model: indexed(folder, model, "weights.bin"), "names 'weights.bin'; only safetensors"),
        (lambda folder, model: indexed(folder, model, "../outside.safetensors"), "names '../outside.safetensors'"),
        (overwritten, "holds NaN or infinities"),
        (lambda folder, _: configured(folder, intermediate_size=48), "3 of its weights have other shapes"),
        (lambda folder, _: configured(folder, num_hidden_layers=2), "9 of its weights have no values"),
        (classifier, "holds a LlamaForSequenceClassification, which does not write text"),
        (encoder, "holds a BertModel, which does not write text"),
    ],
    ids=["no tokenizer", "no weights", "no config", "broken config", "broken weights", "pointer", "pickle only",
         "index to a pickle", "index to elsewhere", "overwritten", "other shapes", "too few layers", "classifier",
         "encoder"],
)  # fmt: skip
def test_a_folder_that_is_not_a_whole_policy_is_refused_in_one_line(tiny, tmp_path, spoil, why):
    folder = tiny.save(tmp_path / "mine")
    spoil(folder, tiny.model)
    with pytest.raises(AlignkitError, match=f"could not load a policy from .*mine.*{why}.*model.safetensors") as told:
        load_policy(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("spoil", ["pickled adapter", "base with an index to a pickle"])
def test_adapters_are_read_from_safetensors_only(tiny, tmp_path, spoil):
    peft = pytest.importorskip("peft")
    base = load_policy(tiny.save(tmp_path / "base"))
    adapted = Policy(peft.get_peft_model(base.model, peft.LoraConfig(task_type="CAUSAL_LM", r=2)), base.tokenizer)
    folder = adapted.save(tmp_path / "mine")
    assert load_policy(folder).has_adapters
    if spoil == "pickled adapter":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    else:
        indexed(tmp_path / "base", tiny.model, "weights.bin")
    with pytest.raises(AlignkitError, match="no adapter_model.safetensors|names 'weights.bin'; only safetensors"):
        load_policy(folder)


def test_code_that_comes_with_a_model_is_not_run(tiny, tmp_path):
    folder = tiny.save(tmp_path / "mine")
    config = (folder / "config.json").read_text().replace('"llama"', '"evil"')
    auto = '{"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},'
    (folder / "config.json").write_text(config.replace("{", auto, 1))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(AlignkitError, match="mine"):
        load_policy(folder)
    assert not (tmp_path / "ran").exists()


def test_without_shipped_models_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "MODELS", tmp_path)
    with pytest.raises(AlignkitError, match="none built yet"):
        load_policy("assistant")


# -- errors -----------------------------------------------------------------------------------------


def test_a_completion_longer_than_the_context_names_its_row(tiny):
    with pytest.raises(ContextError, match="row 1: .*context of 96 tokens.*shorten or drop"):
        tiny.logprobs([SHORT, SHORT], ["salt", "salt " * 200])


def test_a_prompt_without_room_for_the_completion_is_named(tiny):
    with pytest.raises(ContextError, match="prompt 1 has 14 tokens; with max_new_tokens=90"):
        tiny.sample([SHORT, LONG], max_new_tokens=90)


@pytest.mark.parametrize("options", [{"prompts": []}, {"n": 0}, {"max_new_tokens": 0}])
def test_sampling_nothing_is_an_error(tiny, options):
    with pytest.raises(AlignkitError, match="nothing to sample.*at least 1"):
        tiny.rollout(**{"prompts": [SHORT], **options})


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(tiny, temperature):
    with pytest.raises(AlignkitError, match="temperature must be 0 .greedy. or above"):
        tiny.sample([SHORT], temperature=temperature)


def test_unequal_numbers_of_prompts_and_completions_are_an_error(tiny):
    with pytest.raises(AlignkitError, match="2 prompts but 1 completions"):
        tiny.logprobs([SHORT, LONG], ["salt"])


def test_a_tokenizer_without_an_end_is_refused(tiny):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(AlignkitError, match="'odd' has no end-of-sequence token; set tokenizer.eos_token"):
        Policy(tiny.model, tokenizer, "odd")


def test_a_missing_padding_token_is_replaced(tiny, tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.pad_token = None
    other = Policy(tiny.model, tokenizer)
    assert other.sample([SHORT, LONG], 3, max_new_tokens=8) == tiny.sample([SHORT, LONG], 3, max_new_tokens=8)


# -- conversations and other architectures ----------------------------------------------------------


def test_messages_go_through_the_chat_template(patient, chat):
    messages = [[{"role": "user", "content": p}] for p in (SHORT, LONG)]
    assert [chat.prompt_ids(m) for m in messages] == [patient.prompt_ids(p) for p in (SHORT, LONG)]
    texts = chat.sample(messages, 3, seed=2)
    assert texts == patient.sample([SHORT, LONG], 3, seed=2)
    got, expected = (
        chat.logprobs(messages, [t[0] for t in texts]),
        patient.logprobs([SHORT, LONG], [t[0] for t in texts]),
    )
    torch.testing.assert_close(got[0], expected[0])


def test_a_conversation_can_be_treated(chat):
    messages = [[{"role": "user", "content": p}] for p in (SHORT, LONG)]
    treated = optimize.grpo(
        chat,
        messages,
        lambda prompts, completions: [float(len(c)) for c in completions],
        steps=2,
        prompts_per_step=2,
        group_size=4,
    )
    assert not torch.equal(weights_of(treated), weights_of(chat))


def test_another_architecture_samples_and_scores_alike(other_kind):
    rollout = other_kind.rollout([SHORT, LONG], 4, seed=1, max_new_tokens=12)
    assert (
        rollout.completions == other_kind.rollout([SHORT, LONG], 4, seed=1, max_new_tokens=12, batch_size=3).completions
    )
    logp, _ = other_kind.logprobs(rollout.prompts, rollout.completions)
    for i, (p, c) in enumerate(zip(rollout.prompts, rollout.completions, strict=True)):
        alone = naive_logprobs(other_kind, p, c)
        torch.testing.assert_close(logp[i, : len(alone)], alone, atol=1e-5, rtol=0)


def test_another_architecture_can_be_rewarded_and_treated(other_kind, pairs):
    some = pairs.select(range(64))
    reward = rewards.BradleyTerry.fit(some, other_kind, epochs=15, batch_size=16)
    assert np.isfinite(reward(some["prompt"][:], some["chosen"][:]).scores).all()
    assert reward.history["loss"].tail(8).mean() < reward.history["loss"].head(8).mean()
    loss = optimize.dpo(other_kind, some, epochs=6, batch_size=16, learning_rate=1e-3).history["loss"]
    assert loss[0] == pytest.approx(np.log(2), abs=1e-4) and loss[-4:].mean() < loss[0] - 0.02


def test_size_and_context_are_as_asked(world):
    made = make_policy(world.vocabulary(), seed=3, context=40)
    assert 0.1e6 < weights_of(made).numel() < 0.2e6 and made.context == 40
    assert torch.equal(weights_of(made), weights_of(make_policy(world.vocabulary(), seed=3, context=40)))


def test_what_is_read_in_parts_is_what_is_read_at_once_and_so_is_its_gradient(patient, world):
    """Any reading of rows, here the entropy at each token; the budget makes 12 parts of 12 rows."""
    rollout = patient.rollout(world.prompts("seen")[:4], 3, seed=1)
    whole, parts = patient.copy(), patient.copy()
    parts.logit_budget = 1
    out = []
    for policy in (whole, parts):
        logp = lambda rows, p=policy: torch.log_softmax(p.logits(rows), -1) * rows.mask[..., None]  # noqa: E731
        read = policy.in_parts(rollout.batch, lambda rows, f=logp: -(f(rows).exp() * f(rows)).sum(-1))
        read.sum().backward()
        out.append((read, *(p.grad for p in policy.model.parameters())))
    for a, b in zip(*out, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
