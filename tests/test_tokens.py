"""Token ids and masks are those that TRL's own trainers make of the same rows, for tokenizers of every kind."""

import copy

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignkit import optimize
from alignkit.errors import AlignkitError, ContextError
from alignkit.policy import Policy, micro_batches

CORPUS = [
    "What is the capital of France ? The capital of France is Paris .",
    "Where do I start learning?\nStart with the heart, then the lungs: they are simple.",
    "user: how do I make tea? assistant: Boil water, add leaves, wait.  Done!",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)


def built(model, trainer, before, *, eos, extra=(), decoder=None, around=None, template=None, normalizer=None):
    """A tokenizer trained on the corpus; `around`: the special tokens it puts about every text."""
    raw = Tokenizer(model)
    raw.pre_tokenizer, raw.decoder = before, decoder
    if normalizer is not None:
        raw.normalizer = normalizer
    special = [eos, "<unk>", *extra]
    raw.train_from_iterator(CORPUS, trainer(special_tokens=special))
    if around:
        ids = [(token, raw.token_to_id(token)) for token in around.split() if token != "$A"]
        raw.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    names = {"bos_token": extra[0]} if extra and extra[0] in ("<s>", "[CLS]") else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, unk_token="<unk>", pad_token=eos, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in extra if t not in names.values()]})
    tokenizer.chat_template = template
    return tokenizer


def byte_level(**options):
    def trainer(**more):
        return trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **more)

    return built(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False),
                 decoder=decoders.ByteLevel(), **options)  # fmt: skip


def metaspace(scheme="always", **options):
    def trainer(**more):
        return trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **more)

    return built(models.Unigram(), trainer, pre_tokenizers.Metaspace(prepend_scheme=scheme),
                 decoder=decoders.Metaspace(prepend_scheme=scheme), **options)  # fmt: skip


def word_piece(**options):
    def trainer(**more):
        return trainers.WordPieceTrainer(vocab_size=200, **more)

    return built(models.WordPiece(unk_token="<unk>"), trainer, pre_tokenizers.BertPreTokenizer(),
                 normalizer=normalizers.BertNormalizer(), decoder=decoders.WordPiece(), **options)  # fmt: skip


KINDS = {
    "byte-level BPE": lambda: byte_level(eos="<|endoftext|>"),
    "byte-level BPE, ChatML": lambda: byte_level(
        eos="<|im_end|>", extra=("<|im_start|>", "<|endoftext|>"), template=CHATML
    ),
    "byte-level BPE, a generation prompt of its own": lambda: byte_level(
        eos="<|im_end|>", extra=("<|im_start|>",), template=THINKING
    ),
    "Unigram with <s>": lambda: metaspace(eos="</s>", extra=("<s>",), around="<s> $A"),
    "Unigram with <s>, [INST]": lambda: metaspace(
        "first", eos="</s>", extra=("<s>",), around="<s> $A", template=INST
    ),
    "WordPiece with [CLS] and [SEP]": lambda: word_piece(eos="[SEP]", extra=("[CLS]",), around="[CLS] $A [SEP]"),
    "WordPiece, ChatML": lambda: word_piece(eos="<|im_end|>", extra=("<|im_start|>",), template=CHATML),
    "words, an end added by itself": lambda: built(
        models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizers.WhitespaceSplit(),
        eos="</s>", around="$A </s>",
    ),
}  # fmt: skip


FORMS = [(kind, form) for kind in KINDS for form in ("text", "messages")[: 1 + bool(KINDS[kind]().chat_template)]]


@pytest.fixture(scope="module", params=FORMS, ids=", ".join)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def policy(form):
    tokenizer = KINDS[form[0]]()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Policy(LlamaForCausalLM(config), tokenizer, form[0])


@pytest.fixture(scope="module")
def rows(form, policy):
    """Pairs as TRL takes them: prompt, chosen, rejected."""
    end = policy.tokenizer.eos_token
    pairs = [
        ("What is the capital of France ?", " Paris is the capital .", "Lyon"),
        ("how do I make tea?\n", "Boil water, add leaves", "wait." + end),
        ("The capital of Fr", "ance is Paris", "iends"),  # tokens merge where the two meet
        ("Where do I start? ", "with the heart", ""),
    ]
    if form[1] == "text":
        return [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in pairs]
    system = [] if "INST" in policy.tokenizer.chat_template else [{"role": "system", "content": "be brief"}]
    return [
        {"prompt": [*system, {"role": "user", "content": p}],
         **{side: [{"role": "assistant", "content": said.strip()}] for side, said in (("chosen", a), ("rejected", b))}}
        for p, a, b in pairs
    ]  # fmt: skip


def columns(rows, *names):
    return [[row[name] for row in rows] for name in names]


def quiet(kind, folder, **more):
    return kind(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, max_length=None, **more
    )


def prepared(kind, config, policy, data, folder, model=None, **more):
    """The rows that a trainer of TRL's makes of the data."""
    reference = {"ref_model": policy.copy().model} if kind in (DPOTrainer, KTOTrainer) else {}
    return kind(
        model=model or policy.copy().model, args=quiet(config, folder, **more), train_dataset=Dataset.from_list(data),
        processing_class=copy.deepcopy(policy.tokenizer), **reference,
    ).train_dataset  # fmt: skip


def unpadded(batch):
    """(prompt ids, completion ids) of each row of a batch, by its masks alone."""
    width = batch.ids.shape[1] - batch.completion.shape[1]
    return [
        (ids[:width][seen[:width] == 1].tolist(), tail[keep == 1].tolist())
        for ids, seen, tail, keep in zip(batch.ids, batch.attention, batch.completion, batch.mask, strict=True)
    ]


def test_supervised_rows_are_those_of_trls_sft(policy, rows, tmp_path):
    prompts, chosen = columns(rows, "prompt", "chosen")
    data = [{"prompt": p, "completion": c} for p, c in zip(prompts, chosen, strict=True)]
    theirs = prepared(SFTTrainer, SFTConfig, policy, data, tmp_path)
    for (head, tail), row in zip(unpadded(policy.encode(prompts, chosen)), theirs, strict=True):
        assert head + tail == list(row["input_ids"])
        assert [-100] * len(head) + tail == list(row["labels"])


def test_pairs_are_those_of_trls_dpo(policy, rows, tmp_path):
    theirs = prepared(DPOTrainer, DPOConfig, policy, rows, tmp_path)
    mine = unpadded(policy.encode_pairs(*columns(rows, "prompt", "chosen", "rejected")))
    for (head, tail), (other, worse), row in zip(mine[: len(rows)], mine[len(rows) :], theirs, strict=True):
        assert head == other == list(row["prompt_ids"])
        assert (tail, worse) == (list(row["chosen_ids"]), list(row["rejected_ids"]))


def test_labeled_rows_are_those_of_trls_kto(policy, rows, tmp_path):
    prompts, rejected = columns(rows, "prompt", "rejected")
    data = [{"prompt": p, "completion": c, "label": i % 2 == 0} for i, (p, c) in
            enumerate(zip(prompts, rejected, strict=True))]  # fmt: skip
    theirs = prepared(KTOTrainer, KTOConfig, policy, data, tmp_path, loss_type="apo_zero_unpaired")
    mine = unpadded(policy.encode(prompts, rejected))
    assert mine == [(list(row["prompt_ids"]), list(row["completion_ids"])) for row in theirs]


def test_what_a_reward_model_reads_is_what_trls_reads(policy, rows, tmp_path):
    config = copy.deepcopy(policy.model.config)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    theirs = prepared(RewardTrainer, RewardConfig, policy, rows, tmp_path, model=model)
    mine = unpadded(policy.encode_pairs(*columns(rows, "prompt", "chosen", "rejected")))
    for i, row in enumerate(theirs):
        assert mine[i][0] + mine[i][1] == list(row["chosen_ids"])
        assert sum(mine[len(rows) + i], []) == list(row["rejected_ids"])


def test_a_completion_that_was_cut_off_gets_no_end(policy, rows):
    prompts, chosen = columns(rows, "prompt", "chosen")
    whole, cut = (unpadded(policy.encode(prompts, chosen, ended)) for ended in (True, False))
    mixed = unpadded(policy.encode(prompts, chosen, torch.tensor([True, False] * 2)))
    assert mixed == [whole[0], cut[1], whole[2], cut[3]]
    for (head, tail), (other, short) in zip(whole, cut, strict=True):
        assert head == other and tail[: len(short)] == short and len(short) < len(tail)
        assert policy.tokenizer.eos_token_id not in short


def test_sampled_ids_are_encoded_as_they_were_sampled(policy, rows):
    prompts = columns(rows, "prompt")[0]
    rollout = policy.rollout(prompts, 4, seed=1, max_new_tokens=9)
    again = policy.encode(rollout.prompts, rollout.batch.tails)
    for name in ("ids", "attention", "completion", "mask"):
        assert torch.equal(getattr(again, name), getattr(rollout.batch, name))


# -- what TRL has not, and errors --------------------------------------------------------------------


@pytest.fixture
def chat(request):
    tokenizer = KINDS["byte-level BPE, ChatML"]()
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=2)  # fmt: skip
    torch.manual_seed(0)
    return Policy(LlamaForCausalLM(config), tokenizer, "chat")


def test_text_behind_messages_is_what_the_model_would_have_written(chat):
    asked, said = [{"role": "user", "content": "how do I make tea?"}], "Boil water"
    (text,), (turn,) = (unpadded(chat.encode([asked], [c])) for c in (said, [{"role": "assistant", "content": said}]))
    line = chat.tokenizer("\n")["input_ids"]
    assert text[0] == turn[0] == chat.prompt_ids(asked) and text[1] + line == turn[1]  # the template's own line break


def test_every_end_token_ends_and_is_kept(chat):
    more = chat.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    chat.model.generation_config = GenerationConfig(eos_token_id=[more, chat.tokenizer.eos_token_id])
    assert chat.ends == [chat.tokenizer.eos_token_id, more]
    with torch.no_grad():
        chat.model.get_output_embeddings().weight[chat.ends] *= 0
    rollout = chat.rollout(["how do I"], 400, seed=2, max_new_tokens=60)
    for tail, ended in zip(rollout.batch.tails, rollout.ended.tolist(), strict=True):
        assert ended == (tail[-1] in chat.ends) and not {*tail[:-1]} & {*chat.ends}
        assert ended or len(tail) == 60
    last = {tail[-1] for tail in rollout.batch.tails}
    assert {*chat.ends} <= last  # both were met
    assert not any("<|" in text for text in rollout.completions)


def test_the_space_before_a_completion_is_the_worlds_own(patient, chat):
    assert patient.tokenizer.init_kwargs["completion_prefix"] == " "
    assert "completion_prefix" not in chat.tokenizer.init_kwargs
    batch = patient.encode(["how do i make soup ?"], ["salt ."])
    assert unpadded(batch)[0] == (patient.prompt_ids("how do i make soup ?"), patient.completion_ids("salt ."))


def test_messages_without_a_template_and_mixed_kinds_are_told(patient, chat):
    said = [{"role": "assistant", "content": "salt ."}]
    with pytest.raises(AlignkitError, match="no chat template; write prompts and completions as text"):
        patient.sample([[{"role": "user", "content": "how do i make soup ?"}]])
    with pytest.raises(AlignkitError, match="row 1: the completion is messages, but the prompt is text"):
        chat.encode(["a", "b"], ["c", said])
    with pytest.raises(AlignkitError, match="2 rows but 1 values of `ended`"):
        chat.encode(["a", "b"], ["c", "d"], ended=[True])


def test_one_where_many_are_meant_is_told(chat):
    turns = [{"role": "user", "content": "how do I make tea?"}]
    with pytest.raises(AlignkitError, match="`prompts` must be a list, one entry a row, not str: 'tea'"):
        chat.sample("tea")
    with pytest.raises(AlignkitError, match="`prompts` is one conversation; give a list of conversations"):
        chat.sample(turns)
    with pytest.raises(AlignkitError, match="`completions` must be a list"):
        chat.encode(["a", "b", "c"], "tea")
    for data in (Dataset.from_list([{"prompt": "a"}]), Dataset.from_list([{"prompt": "a"}]).to_pandas()):
        with pytest.raises(AlignkitError, match=r"`prompts` is a data set with the columns \['prompt'\]"):
            chat.rollout(data)
        assert chat.sample(data["prompt"], seed=1) == chat.sample(["a"], seed=1)
    with pytest.raises(AlignkitError, match="row 0: a completion is text, messages or token ids, not None"):
        chat.encode(["a"], [None])
    with pytest.raises(AlignkitError, match="a prompt is text or messages, not 7"):
        chat.encode([7], ["a"])


def test_a_pair_that_does_not_fit_is_named_by_its_own_row(tiny):
    with pytest.raises(ContextError, match="row 1: .*context of 96 tokens"):
        tiny.encode_pairs(["a", "b"], ["salt", "salt"], ["salt", "salt " * 200])


def test_a_first_token_that_swallows_the_prompt_is_no_part_of_the_completion():
    """TRL's losses never predict the first token of a row either."""
    tokenizer = KINDS["byte-level BPE"]()
    assert len(tokenizer("The")["input_ids"]) == 1 and tokenizer("The")["input_ids"] != tokenizer("Th")["input_ids"]
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=2)  # fmt: skip
    policy = Policy(LlamaForCausalLM(config), tokenizer)
    batch = policy.encode(["Th", "What is"], ["e capital of", " the"])
    ids = tokenizer("The capital of" + tokenizer.eos_token)["input_ids"]
    assert unpadded(batch)[0] == (ids[:1], ids[1:])
    assert policy.token_logprobs(batch).isfinite().all()
    with pytest.raises(AlignkitError, match="prompt 1 has no tokens"):
        policy.sample(["What is", ""])


def test_messages_that_a_template_refuses_are_shown(chat):
    chat.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(AlignkitError, match="does not take the messages .*how do I.*: roles must alternate"):
        chat.prompt_ids([{"role": "user", "content": "how do I"}])


def test_nothing_is_a_batch_of_nothing(chat):
    batch = chat.encode([], [])
    assert batch.ids.shape == batch.mask.shape == (0, 0) and chat.token_logprobs(batch).shape == (0, 0)


# -- micro-batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 40, 100, 10**9])
def test_micro_batches_hold_all_rows_in_order_and_keep_to_the_budget(budget):
    lengths = torch.tensor([3, 9, 1, 4, 4, 4, 2, 12])
    parts = micro_batches(lengths, vocabulary=2, rows=5, budget=budget)
    assert torch.equal(torch.cat(parts), torch.arange(8))
    for part in parts:
        assert len(part) <= 5 and (len(part) == 1 or len(part) * lengths[part].max() * 2 <= budget)
    if budget == 10**9:
        assert [len(p) for p in parts] == [5, 3]


def test_log_probabilities_and_gradients_are_the_same_in_parts(chat):
    rollout = chat.rollout(["how do I", "What is the capital of France ?"], 4, seed=3, max_new_tokens=7)
    weight = chat.model.model.layers[0].mlp.up_proj.weight
    whole = chat.token_logprobs(rollout.batch)
    whole.square().sum().backward()
    expected, weight.grad = weight.grad, None
    chat.logit_budget = 30 * chat.vocabulary
    assert len(micro_batches(rollout.batch.attention.sum(1), chat.vocabulary, 8, chat.logit_budget)) > 3
    parts = chat.token_logprobs(rollout.batch)
    parts.square().sum().backward()
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        chat.logprobs(rollout.prompts, rollout.batch.tails)[0], whole.detach(), atol=1e-5, rtol=0
    )
    same = chat.rollout(["how do I", "What is the capital of France ?"], 4, seed=3, max_new_tokens=7)
    assert same.batch.tails == rollout.batch.tails


def test_no_forward_pass_makes_more_logits_than_the_budget(chat):
    """Counted at the model's output, in scoring with and without gradients and in sampling."""
    sizes = []
    chat.model.register_forward_hook(lambda _m, _a, out: sizes.append(out.logits.numel()))
    chat.logit_budget = 40 * chat.vocabulary
    rollout = chat.rollout(["how do I make tea?"] * 30, 4, seed=3, max_new_tokens=7)
    chat.token_logprobs(rollout.batch).sum().backward()
    chat.logprobs(rollout.prompts, rollout.batch.tails)
    assert len(sizes) > 10 and max(sizes) <= chat.logit_budget


def test_bf16_autocast_is_an_option_of_the_policy(patient):
    half = Policy(patient.model, patient.tokenizer, "half", precision="bf16")
    batch = patient.rollout(["how do i make soup ?"], 8, seed=0).batch
    with torch.no_grad():
        exact, rounded = patient.token_logprobs(batch), half.token_logprobs(batch)
    assert half.logits(batch).dtype == torch.bfloat16 and rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.2
    assert half.copy().precision == "bf16" and len(half.sample(["how do i make soup ?"], 2)[0]) == 2
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    told = optimize.InContext(half, principle="be kind .")
    assert told.precision == told.copy().precision == "bf16"
    with pytest.raises(AlignkitError, match="precision must be one of None, bf16, fp16, not 'int4'"):
        Policy(patient.model, patient.tokenizer, precision="int4")
