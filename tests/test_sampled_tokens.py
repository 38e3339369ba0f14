"""Training is on the tokens that were sampled: no end that nobody sampled, finer credit where its words are."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignkit import optimize
from alignkit.errors import AlignkitError
from alignkit.optimize.advantages import group_centered, group_normalized, leave_one_out
from alignkit.optimize.experience import token_rewards
from alignkit.policy import Policy, Rollout
from alignkit.rewards import Judgement
from alignkit.rewards.texts import token_ends

PROMPTS = ["please explain iron ?", "tell me about glass .", "how do i cook rice ?", "please explain salt ?"]
TEXT = " the tea\n\nis hot . é"
END = "<end>"


@pytest.fixture(scope="module")
def bytes_policy():
    """A byte-level BPE that merges " t", "he" and line breaks: samples may be cut otherwise than it would cut them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "Ġt", "he", "Ġthe", "ĊĊ", END])}
    bpe = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ċ", "Ċ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)
    config = LlamaConfig(vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=128)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Policy(LlamaForCausalLM(config), tokenizer, "bytes")


def sampled(policy, ids, ended, strip=False):
    """A rollout of one row with these tokens."""
    batch = policy.pad([policy.prompt_ids("a")], [ids])
    text = policy.tokenizer.decode(ids[:-1] if ended else ids)
    return Rollout(["a"], [text.strip() if strip else text], batch, torch.tensor([ended]))


def by_bytes(policy, text):
    """The text one byte a token: never how the tokenizer cuts it."""
    one = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [one[symbol] for part, _ in shown for symbol in part]


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("cut", ["bytes", "tokens"])
def test_a_step_is_paid_at_the_sampled_token_that_ends_it(bytes_policy, cut, ended, strip):
    cutter = by_bytes if cut == "bytes" else lambda policy, text: policy.tokenizer(text)["input_ids"]
    ids = cutter(bytes_policy, TEXT)
    rollout = sampled(bytes_policy, ids + [bytes_policy.tokenizer.eos_token_id] * ended, ended, strip)
    text = rollout.completions[0]
    ends = [text.index("tea") + 3, text.index(" .") + 2, len(text)]
    laid = token_rewards(Judgement(np.zeros(1), steps=[np.array([1.0, 2.0, 3.0])], ends=[ends]), bytes_policy, rollout)
    for value, end in zip((1.0, 2.0, 3.0), ends, strict=True):
        (place,) = (laid[0] == value).nonzero()[:, 0].tolist()
        said = bytes_policy.tokenizer.decode(ids[: place + 1])
        before = bytes_policy.tokenizer.decode(ids[:place])
        assert (said.lstrip() if strip else said) == text[:end]
        assert said.strip().endswith(text[:end][-1]) and before.strip() != said.strip()
    assert (~laid.isnan()).sum() == 3


def test_rewards_of_tokens_meet_where_samples_were_cut_otherwise(bytes_policy):
    """The reward reads few tokens, many bytes were sampled: each lies at the byte that ends its token."""
    eos = bytes_policy.tokenizer.eos_token_id
    ids = [*by_bytes(bytes_policy, TEXT), eos]
    rollout = sampled(bytes_policy, ids, True)
    read = bytes_policy.tokenize(["a"], [TEXT])[1][0]
    values = np.arange(1.0, len(read) + 1)
    laid = token_rewards(Judgement(np.zeros(1), tokens=[values]), bytes_policy, rollout)
    assert len(read) < len(ids) and laid[0].nan_to_num().sum() == values.sum()
    assert laid[0, -1] == values[-1]  # the end of sequence's own
    the = token_ends(bytes_policy, ids[:-1], TEXT).index(3)  # "the" ends in its third letter
    assert laid[0, the] == values[0] and laid[0, :the].isnan().all()


def sampling_methods():
    longer = lambda prompts, a, b: np.array([len(x) > len(y) for x, y in zip(a, b, strict=True)])  # noqa: E731
    length = lambda prompts, completions: [0.1 * len(c) for c in completions]  # noqa: E731
    fresh, rounds = {"steps": 1, "prompts_per_step": 4}, {"rounds": 1, "prompts_per_round": 4}
    return {
        "online_dpo": (longer, fresh), "reward_regression": (length, fresh), "rloo": (length, fresh),
        "raft": (length, rounds), "rso": (length, {"n": 4, "keep": 2, **rounds}), "iterative_dpo": (longer, rounds),
        "sppo": (longer, {"group_size": 3, **rounds}),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(sampling_methods()))
def test_what_was_cut_off_has_no_end_in_training(tiny, name, monkeypatch):
    """With room for three tokens nearly everything is cut off; the tokens that training reads are those sampled."""
    judge, options = sampling_methods()[name]
    sampled, read = set(), []
    rollout, logprobs = Policy.rollout, Policy.token_logprobs

    def rolled(self, *args, **more):
        out = rollout(self, *args, **more)
        assert out.batch.mask.sum(1).max() <= 3
        sampled.update(map(tuple, out.batch.tails))
        return out

    def spied(self, batch):
        read.extend(map(tuple, batch.tails))
        return logprobs(self, batch)

    monkeypatch.setattr(Policy, "rollout", rolled)
    monkeypatch.setattr(Policy, "token_logprobs", spied)
    getattr(optimize, name)(tiny, PROMPTS, judge, max_new_tokens=3, progress=False, **options)
    assert read and {tails for tails in read if tails} <= sampled
    assert any(tiny.tokenizer.eos_token_id not in tails for tails in read)


# -- completions that the reward leaves out --------------------------------------------------------


@pytest.mark.parametrize("advantages_of", [leave_one_out, group_centered, group_normalized])
def test_who_was_left_out_is_in_no_group(advantages_of):
    rewards, mask = torch.tensor([[1.0, 5.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    some = advantages_of(rewards.masked_fill(mask == 0, torch.nan)[..., None], mask[..., None])[0, :, 0]
    torch.testing.assert_close(some[mask[0] > 0], advantages_of(rewards[:, mask[0] > 0])[0])
    assert some[1] == 0
    alone = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert (advantages_of(rewards.masked_fill(alone == 0, torch.nan)[..., None], alone[..., None]) == 0).all()


@pytest.mark.parametrize("name", [name for name in optimize.METHODS if name != "remax"])
def test_completions_without_a_score_teach_nothing(tiny, name):
    """Whatever the reward would have said of what it leaves out: the treatment is the same, and finite."""

    def told(word):
        def reward(prompts, completions):
            scores = [0.1 * len(c) for c in completions]
            return [None if i % 4 == 1 else s for i, s in enumerate(scores)]

        return reward

    options = dict(steps=2, prompts_per_step=2, group_size=4, max_new_tokens=6, progress=False)
    treated = optimize.policy_gradient(tiny, PROMPTS, told("a"), optimize.METHODS[name], **options)
    assert all(p.isfinite().all() for p in treated.model.parameters()) and np.isfinite(treated.history["reward"]).all()
    none = optimize.policy_gradient(tiny, PROMPTS, lambda p, c: [None] * len(c), optimize.METHODS[name], **options)
    assert none.spent["updates"] == 0


# -- language ----------------------------------------------------------------------------------------


def test_a_treatment_that_lost_its_language_stops_and_says_what_to_lower(world, patient):
    """Rewarded for words that its reference never puts there, at a rate far too large."""

    def rare(prompts, completions):
        return [float(len(set(c.split()))) for c in completions]

    with pytest.warns(UserWarning, match="has lost its language.*lower learning_rate, raise beta, or set max_kl"):
        treated = optimize.rloo(patient, world.prompts(), rare, beta=0.0, learning_rate=0.3, steps=30,
                                max_new_tokens=16, progress=False)  # fmt: skip
    assert len(treated.history) < 30


def test_unknown_options_are_named(tiny):
    with pytest.raises(AlignkitError, match="grpo: no option 'lr'; there are .*learning_rate"):
        optimize.grpo(tiny, PROMPTS, lambda p, c: [0.0] * len(c), lr=1e-3)
