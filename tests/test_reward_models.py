"""Reward models on every kind of backbone, tokenizer and row: what they read, what is trained, how much at once."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import weights_of
from datasets import Dataset, DatasetDict
from test_tokens import KINDS, form, policy, prepared, rows, unpadded, word_piece  # noqa: F401 (fixtures)
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)
from trl import RewardConfig, RewardTrainer

from alignkit import optimize, rewards
from alignkit.errors import AlignkitError, DataError
from alignkit.policy import Policy
from alignkit.rewards import BradleyTerry, ByToken, ImplicitReward
from alignkit.rewards import model as reward_model
from alignkit.rewards.data import check_pairs
from alignkit.rewards.texts import step_tokens, token_ends

FEW = {"epochs": 1, "batch_size": 8, "progress": False}


@pytest.fixture
def few(pairs):
    return pairs.select(range(24))


def policy_of(kind):
    tokenizer = KINDS[kind]()
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=2, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    torch.manual_seed(0)
    return Policy(LlamaForCausalLM(config), tokenizer, kind)


# -- the same tokens as TRL ------------------------------------------------------------------------------------------


def test_rows_are_those_of_trls_reward_trainer(policy, rows, tmp_path):  # noqa: F811
    reward = BradleyTerry.new(policy)
    theirs = prepared(RewardTrainer, RewardConfig, policy, rows, tmp_path, model=reward.model)
    sides = [[row[name] for row in rows] for name in ("prompt", "chosen", "rejected")]
    mine = [head + tail for head, tail in unpadded(reward.encode_pairs(*sides))]
    assert mine == [list(row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in theirs]


def test_text_behind_messages_is_read_as_a_message_of_the_assistant():
    reward = BradleyTerry.new(policy_of("byte-level BPE, ChatML"))
    asked, said = [{"role": "user", "content": "how do I make tea?"}], "Boil water"
    turn = [{"role": "assistant", "content": said}]
    assert unpadded(reward.encode([asked], [said])) == unpadded(reward.encode([asked], [turn]))
    assert reward([asked], [said]).scores == reward([asked], [turn]).scores


@pytest.mark.parametrize("implicit", [False, True])
def test_conversations_are_fit_with_their_prompt_or_without(implicit):
    asked = [{"role": "user", "content": "how do I make tea?"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("Boil water, add leaves", "Lyon"))
    row = {"chosen": asked + good, "rejected": asked + bad} if implicit else \
        {"prompt": asked, "chosen": good, "rejected": bad}  # fmt: skip
    data = Dataset.from_list([{**row, "source": i} for i in range(16)])
    explicit = check_pairs(data)
    assert explicit["prompt"][0] == asked and explicit["chosen"][3] == good and explicit["source"][:] == [*range(16)]
    reward = BradleyTerry.fit(data, policy_of("byte-level BPE, ChatML"), learning_rate=1e-2, epochs=20, batch_size=16,
                              progress=False)  # fmt: skip
    assert np.subtract(*(reward([asked], [side]).scores for side in (good, bad))) > 0.1


def test_a_text_pair_without_a_prompt_is_split_as_trl_splits_it():
    data = Dataset.from_dict({"chosen": ["the sky is blue"], "rejected": ["the sky is green"]})
    assert check_pairs(data)[0] == {"prompt": "the sky is", "chosen": " blue", "rejected": " green"}


def test_rewards_that_read_text_take_it_out_of_messages(tiny):
    def turn(role, text):
        return [{"role": role, "content": text}]

    question, said = "how do i make tea ?", ["thank you for asking .", "no ."]
    asked, (good, bad) = turn("user", question), (turn("assistant", text) for text in said)
    plain = Dataset.from_list([{"prompt": question, "chosen": said[0], "rejected": said[1]}] * 16)
    told = Dataset.from_list([{"chosen": asked + good, "rejected": asked + bad}] * 16)
    for fit in (rewards.BagOfWords.fit, lambda data: rewards.Comparator.fit(data, tiny, epochs=1, progress=False)):
        text, messages = fit(plain), fit(told)
        expected = text([question] * 2, said).scores
        np.testing.assert_allclose(messages([question] * 2, said).scores, expected, atol=1e-6)
        np.testing.assert_allclose(messages([asked] * 2, [good, bad]).scores, expected, atol=1e-6)


@pytest.mark.parametrize(("data", "says"), [
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "not list; Dataset.from_list"),
    (pd.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}), "not DataFrame; Dataset.from_pandas"),
    (DatasetDict(train=Dataset.from_dict({"prompt": ["a"]})), "not DatasetDict; name one of its splits"),
    ("pairs.jsonl", "not str"),
    (Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), "empty"),
    (Dataset.from_dict({"prompt": [["a"]], "chosen": ["b"], "rejected": ["c"]}), "row 0: 'prompt' is list, not text"),
])  # fmt: skip
def test_what_is_no_data_set_of_pairs_is_named(tiny, data, says):
    for kind in (BradleyTerry, rewards.Distributional, rewards.Comparator, rewards.PersonalReward):
        with pytest.raises(DataError, match=says):
            kind.fit(data, tiny)
    with pytest.raises(DataError, match="must be a datasets.Dataset"):
        rewards.Regression.fit("ratings.csv", tiny)


# -- steps and tokens on the ids that are there ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_steps_end_where_their_characters_do(kind):
    """Checked by reading what stands before and behind each place, for texts that merge across the ends of steps."""
    reader = policy_of(kind)
    text = "Boil water. Add leaves,\nwait. Done!"
    ends = [11, 29, 35]
    ids = reader.encode(["how do I make tea? "], [text]).tails[0]
    places = step_tokens(reader, ids, text, ends)
    assert len(places) == 3 and places == sorted(places)
    if "<unk>" in reader.tokenizer.convert_ids_to_tokens(ids):
        return  # words are lost: there is nothing to read
    bare = lambda said: "".join(said.split()).lower()  # noqa: E731
    for place, end in zip(places, ends, strict=True):
        until, before = (bare(reader.tokenizer.decode(ids[:n], skip_special_tokens=True)) for n in (place + 1, place))
        assert bare(text[:end]) in until and bare(text[:end]) not in before


def test_steps_are_laid_on_ids_that_were_sampled_otherwise():
    reader = policy_of("byte-level BPE")
    text = "Done. Café!"
    letters = [i for letter in text for i in reader.tokenizer(letter)["input_ids"]]  # one token a byte
    assert letters != reader.tokenizer(text)["input_ids"]
    end = len(letters) - 1
    assert step_tokens(reader, letters, text, [5, len(text)]) == [4, end]
    assert token_ends(reader, letters, text)[4] == 5 and token_ends(reader, letters, text)[-1] == 10


def test_words_that_the_tokenizer_does_not_know_shift_nothing(patient):
    text = "thank zyzzyx you . of zyzzyx course ."
    ids = patient.encode(["how do i make tea ?"], [text]).tails[0]
    assert step_tokens(patient, ids, text, [18, len(text)]) == [3, 7]


def test_token_credit_has_one_number_for_each_sampled_token():
    reader = policy_of("byte-level BPE")
    text, prompt = "Done. Stop", "how do I make tea?"
    letters = [reader.tokenizer(letter)["input_ids"][0] for letter in text]
    for reward in (ByToken(BradleyTerry.new(reader)), ImplicitReward(reader, None, granularity="token")):
        judged = reward([prompt], [text], completion_ids=[letters])
        assert len(judged.tokens[0]) == len(letters) == 10
        assert judged.tokens[0].sum() == pytest.approx(judged.scores[0])
        foreign = reward([prompt], [text], completion_ids=[[5, 6]])  # another tokenizer's: the text is what counts
        assert len(foreign.tokens[0]) == len(reader.encode([prompt], [text]).tails[0])


# -- backbones -------------------------------------------------------------------------------------------------------


ENCODERS = {
    "bert": lambda n: BertForMaskedLM(BertConfig(vocab_size=n, hidden_size=16, num_hidden_layers=1,
                                                 num_attention_heads=2, intermediate_size=16)),
    "roberta": lambda n: RobertaForMaskedLM(RobertaConfig(vocab_size=n, hidden_size=16, num_hidden_layers=1,
                                                          num_attention_heads=2, intermediate_size=16)),
    "distilbert": lambda n: DistilBertForMaskedLM(DistilBertConfig(vocab_size=n, dim=16, n_layers=1, n_heads=2,
                                                                   hidden_dim=16)),
}  # fmt: skip


@pytest.fixture(params=ENCODERS)
def encoder(request, tmp_path):
    tokenizer = word_piece(eos="[SEP]", extra=("[CLS]",), around="[CLS] $A [SEP]")
    torch.manual_seed(0)
    ENCODERS[request.param](len(tokenizer)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_carries_a_reward_model(encoder, tmp_path):
    good, bad, asked = "boil water, add leaves", "lyon", "how do i make tea?"
    data = Dataset.from_dict({"prompt": [asked] * 16, "chosen": [good] * 16, "rejected": [bad] * 16})
    reward = BradleyTerry.fit(data, str(encoder), learning_rate=1e-2, epochs=20, batch_size=16, progress=False)
    texts = [asked] * 3, [good, bad, "wait. done! " * 6]
    scores = reward(*texts).scores
    assert scores[0] > scores[1] + 0.1
    alone = [reward([prompt], [text]).scores[0] for prompt, text in zip(*texts, strict=True)]  # no padding at all
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    again = BradleyTerry.load(reward.save(tmp_path / "reward"))
    np.testing.assert_allclose(again(*texts).scores, scores, atol=1e-5)


def test_a_classifier_from_elsewhere_is_read_as_its_own_class_reads_it(tmp_path):
    tokenizer = word_piece(eos="[SEP]", extra=("[CLS]",), around="[CLS] $A [SEP]")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **size)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = BradleyTerry.load(tmp_path)
    prompts, said = ["where do i start?", "tea"], ["with the heart", "done"]
    with torch.no_grad():
        own = [model(torch.tensor([ids + tail])).logits.item() for ids, tail in unpadded(reward.encode(prompts, said))]
    np.testing.assert_allclose(reward(prompts, said).scores, own, atol=1e-5)
    with pytest.raises(AlignkitError, match="pooling 'own' has no outputs by token"):
        reward.outputs_by_token(reward.encode(prompts, said))


def test_a_language_model_is_no_reward(patient, tmp_path):
    with pytest.raises(AlignkitError, match="no reward model: it has no head that was trained"):
        BradleyTerry.load(patient.save(tmp_path))


def test_a_family_without_a_head_for_scores_is_named(patient):
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(patient.tokenizer), hidden_size=16, num_hidden_layers=1))
    with pytest.raises(AlignkitError, match="knows no mamba with a head for scores"):
        BradleyTerry.new(Policy(mamba, patient.tokenizer, "mamba"))


def test_adapters_are_carried_trained_saved_and_their_base_is_shared(patient, few, tmp_path):
    pytest.importorskip("peft")
    adapted = optimize.dpo(optimize.with_lora(patient), few, learning_rate=3e-3, **FEW)
    before = weights_of(adapted)
    reward = BradleyTerry.fit(few, adapted, learning_rate=1e-2, **FEW)
    assert torch.equal(weights_of(adapted), before)
    held = {p.data_ptr() for p in adapted.model.parameters() if not p.requires_grad}
    trained = {name for name, p in reward.model.named_parameters() if p.requires_grad}
    assert all(p.data_ptr() in held for name, p in reward.model.named_parameters() if name not in trained)
    assert all("lora_" in name or name == "score.weight" for name in trained) and len(trained) > 1
    fresh = BradleyTerry.new(adapted)
    assert any(not torch.equal(p, dict(fresh.model.named_parameters())[name])
               for name, p in reward.model.named_parameters() if "lora_" in name)  # fmt: skip
    texts = few["prompt"][:], few["chosen"][:]
    plain = BradleyTerry.new(patient)  # the adapter that was trained is part of it, not thrown away
    assert np.abs(fresh(*texts).scores - plain(*texts).scores).max() > 1e-4
    again = BradleyTerry.load(reward.save(tmp_path))
    np.testing.assert_allclose(again(*texts).scores, reward(*texts).scores, atol=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).num_labels == 1


def test_frozen_weights_stay_frozen(patient, few):
    backbone = patient.copy()
    backbone.model.model.requires_grad_(False)
    backbone.model.model.layers[1].requires_grad_(True)
    reward = BradleyTerry.fit(few, backbone, learning_rate=1e-2, **FEW)
    start = dict(patient.model.model.named_parameters())
    for name, weight in reward.model.model.named_parameters():
        assert torch.equal(weight, start[name]) == (not name.startswith("layers.1."))


def test_a_large_backbone_is_never_held_twice(patient, monkeypatch):
    """From `SMALL` weights on nothing random is made of the body's size: only the head is drawn."""
    monkeypatch.setattr(reward_model, "SMALL", 0)
    model = reward_model.with_head(patient, 2, seed=3)
    sides = zip(model.model.parameters(), patient.model.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in sides)
    assert model.score.weight.shape == (2, 64) and 0.01 < model.score.weight.std() < 0.04
    assert not torch.equal(model.score.weight, reward_model.with_head(patient, 2, seed=4).score.weight)


# -- how much at once, and what is left alone ------------------------------------------------------------------------


def test_parts_of_a_minibatch_make_the_same_reward(patient, few):
    whole, parts = (BradleyTerry.fit(few, patient, micro_batch_tokens=n, **FEW) for n in (10**9, 150))
    torch.testing.assert_close(weights_of(parts), weights_of(whole), atol=1e-4, rtol=0)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], atol=1e-5)
    np.testing.assert_allclose(parts.history["accuracy"], whole.history["accuracy"])


def test_no_logits_are_made(patient, few, monkeypatch):
    backbone = patient.copy()
    monkeypatch.setattr(backbone.model.lm_head, "forward", lambda *_: pytest.fail("the head for words was read"))
    reward = BradleyTerry.fit(few, backbone, **FEW)
    assert not hasattr(reward.model, "lm_head") and len(reward(few["prompt"][:], few["chosen"][:]).scores) == 24
    vector = rewards.MultiAspect.new(backbone, outputs=2)
    rewards.Gated.fit(few, vector, steps=1)
    rewards.PersonalReward.fit(few.map(lambda _, i: {"annotator": str(i % 3)}, with_indices=True), backbone, **FEW)


def test_the_global_generator_is_left_alone(patient, few):
    state = torch.random.get_rng_state()
    reward = BradleyTerry.fit(few, patient, **FEW)
    rewards.Gated.fit(few, rewards.MultiAspect.new(patient, outputs=2), steps=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(weights_of(BradleyTerry.fit(few, patient, **FEW)), weights_of(reward))


def test_learning_rates_follow_what_is_trained(patient, monkeypatch):
    rates = []
    monkeypatch.setattr(reward_model, "fit", lambda *_, learning_rate, **__: rates.append(learning_rate))
    reward = BradleyTerry.new(patient)
    reward.train(None, torch.ones(4))
    monkeypatch.setattr("alignkit.training.SMALL", 1000)
    reward.train(None, torch.ones(4))
    copy.copy(reward).train(None, torch.ones(4), learning_rate=0.5)
    assert rates[0] == 1e-3 and rates[1] <= 1e-4 and rates[2] == 0.5
