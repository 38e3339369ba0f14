"""Better answers without an update: exact where it can be enumerated, in the right order where it is learned."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from alignkit import evaluation, rewards, worlds
from alignkit.errors import AlignkitError, ContextError
from alignkit.lab import build
from alignkit.lab.build import build_models
from alignkit.optimize.decoding import (
    FunctionGuide,
    Guided,
    ModelGuide,
    PrefixValue,
    blockwise,
    every_completion,
    exact_values,
)
from alignkit.optimize.in_context import InContext, shuffled_answers
from alignkit.optimize.inference import (
    acceptance_rate,
    best_of_n,
    ratio_kl,
    sample_optimum,
    self_consistent,
    soft_best_of_n,
    soft_best_of_n_ratio,
    vote,
)
from alignkit.policy import Policy, load_policy
from alignkit.worlds import authors

P = np.array([0.4, 0.3, 0.2, 0.1])
REWARD = np.array([0.0, 1.0, 1.0, 2.5])


INSULTS = ("silly question", "fool .", "waste my time")


def manners(prompts, completions):
    return [-float(any(insult in c for insult in INSULTS)) for c in completions]


@pytest.fixture(scope="module")
def exact(toy):
    """The toy in double precision, and a reward that depends on whole completions."""
    policy = Policy(toy.copy().model.double(), toy.tokenizer, "exact")
    return policy, lambda tokens: float(np.sin(sum((k + 2) * t for k, t in enumerate(tokens))))


@pytest.fixture(scope="module")
def reader():
    return load_policy("authors")


@pytest.fixture(scope="module")
def value(world, patient):
    prompts = world.prompts("treatment")[::2]
    return PrefixValue.fit(patient, prompts, manners, n=8, pooling="last", epochs=3, progress=False)


# --- selection


@pytest.mark.parametrize("tau", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_soft_best_of_n_is_the_enumeration_of_all_draws(n, tau):
    chance = np.zeros(4)
    for draw in itertools.product(range(4), repeat=n):
        weight = np.exp((REWARD[list(draw)] - REWARD.max()) / tau)
        np.add.at(chance, list(draw), P[list(draw)].prod() * weight / weight.sum())
    ratio = soft_best_of_n_ratio(REWARD, n, tau, P)
    np.testing.assert_allclose(P * ratio[0], chance, atol=1e-10)
    assert ratio_kl(ratio, P[None])[0] == pytest.approx((chance * np.log(chance / P)).sum(), abs=1e-9)


def test_soft_best_of_n_has_three_limits():
    best = evaluation.best_of_n_kl(np.repeat(REWARD, [40, 30, 20, 10]), [4])[0, 0]
    optimum = P * np.exp(REWARD / 0.8)
    assert ratio_kl(soft_best_of_n_ratio(REWARD, 4, 1e-3, P), P[None])[0] == pytest.approx(best, abs=1e-6)
    np.testing.assert_allclose(soft_best_of_n_ratio(REWARD, 4, 1e6, P), 1, atol=1e-5)
    np.testing.assert_allclose(P * soft_best_of_n_ratio(REWARD, 10**6, 0.8, P)[0], optimum / optimum.sum(), atol=1e-5)


def test_soft_best_of_n_chooses_as_often_as_it_says(toy):
    pool = toy.rollout(["a b"], 3000, seed=1, max_new_tokens=2)
    scores = np.array([float(len(c)) for c in pool.completions])
    said = (soft_best_of_n_ratio(scores, 3, 1.0) * scores).mean()
    chosen = soft_best_of_n(toy, ["a b"] * 1500, lambda p, c: [float(len(x)) for x in c], 3, 1.0, 2, max_new_tokens=2)
    assert np.mean([len(c) for c in chosen]) == pytest.approx(said, abs=4 * scores.std() / np.sqrt(1500))
    assert said > scores.mean() + 0.2


def test_accepted_samples_are_exact_and_cost_what_the_acceptance_rate_says(toy):
    reward = {"": 0.0, "a": 1.0, "b": 0.5, "c": -0.5}
    score = lambda prompts, completions: [reward.get(c, 0.2) for c in completions]  # noqa: E731
    pool = toy.rollout(["a"], 20_000, seed=3, max_new_tokens=1).completions
    kinds, count = np.unique(pool, return_counts=True)
    r, p = np.array(score(None, kinds)), count / len(pool)
    target = p * np.exp(r / 0.5) / (p * np.exp(r / 0.5)).sum()
    got = sample_optimum(toy, ["a"] * 3000, score, beta=0.5, bound=1.0, seed=4, max_new_tokens=1)
    assert None not in got.completions
    share = np.array([got.completions.count(kind) / 3000 for kind in kinds])
    np.testing.assert_allclose(share, target, atol=0.035)
    assert np.abs(p - target).max() > 0.1  # it is another distribution than the policy's
    assert 1 / got.tries.mean() == pytest.approx(acceptance_rate(r, 0.5, 1.0, p)[0], rel=0.1)


def test_rejection_gives_up_openly(toy):
    got = sample_optimum(toy, ["a", "b"], lambda p, c: [0.0] * len(c), 0.01, bound=5.0, most=20, max_new_tokens=1)
    assert got.completions == [None, None] and got.tries.tolist() == [20, 20]


# --- guided decoding


def guided_probability(policy, prompt, tokens):
    steps = [policy.next_logprobs(prompt, tokens[:k])[token] for k, token in enumerate(tokens)]
    return float(torch.stack(steps).sum().exp())


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_exact_soft_values_make_decoding_the_kl_optimum(exact, beta):
    policy, reward = exact
    logp = every_completion(policy, "a b", 3)
    p, r = np.exp(list(logp.values())), np.array([reward(y) for y in logp])
    optimum = p * np.exp(r / beta) / (p * np.exp(r / beta)).sum()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    gap = {}
    for name, values in {"soft": exact_values(logp, reward, beta), "mean": exact_values(logp, reward)}.items():
        guided = Guided(policy, FunctionGuide(lambda _, y, v=values: v[y]), weight=1 / beta, top_k=10**6)
        few = list(range(0, len(logp), 7))
        got = np.array([guided_probability(guided, "a b", list(logp)[i]) for i in few])
        gap[name] = np.abs(got - optimum[few]).max()
    assert gap["soft"] < 1e-9 < 1e-4 < gap["mean"]


def test_measured_kl_of_guided_decoding_is_that_of_the_enumeration(exact):
    policy, reward = exact
    logp = every_completion(policy, "a b", 2)
    values = exact_values(logp, reward)
    guided = Guided(policy, FunctionGuide(lambda _, y: values[y]), weight=1.5, top_k=10**6)
    q = np.array([guided_probability(guided, "a b", y) for y in logp])
    kl = (q * (np.log(q) - np.array(list(logp.values())))).sum()
    measured = guided.rollout(["a b"], 1500, seed=2, max_new_tokens=2).kl
    assert kl > 0.1 and measured.mean().item() == pytest.approx(kl, rel=0.05)


def test_without_weight_guided_sampling_is_plain_sampling(patient, world, value):
    prompts, everything = world.prompts("seen")[:3], len(patient.tokenizer)
    guided = Guided(patient, value, weight=0, top_k=everything)
    plain, got = patient.rollout(prompts, 4, seed=5), guided.rollout(prompts, 4, seed=5)
    assert got.completions == plain.completions and got.kl.abs().max() < 1e-5
    assert Guided(patient, value, 0, top_k=10).rollout(prompts, 4, seed=5).kl.min() > 0


def other_architectures(tokenizer):
    small = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=96, **small)
    qwen = Qwen2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2, max_position_embeddings=96, **small)  # fmt: skip
    torch.manual_seed(0)
    return [Policy(GPT2LMHeadModel(gpt2), tokenizer, "gpt2"), Policy(Qwen2ForCausalLM(qwen), tokenizer, "qwen2")]


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_guide_says_of_each_beginning_what_the_reward_model_says(patient, world, pooling):
    prompts = [world.prompts("seen")[0], world.prompts("seen")[20]]
    words = [patient.tokenizer.convert_tokens_to_ids(w) for w in ("happy", "to", "help", ".")]
    for policy in [patient, *other_architectures(patient.tokenizer)]:
        model = rewards.BradleyTerry.new(policy, seed=1, pooling=pooling)
        guide = ModelGuide(model)
        guide.start(prompts)
        for k, word in enumerate(words):
            candidates = torch.tensor([[word, 9, 11], [17, word, 23]])
            said = guide.scores(candidates)
            for row, column in itertools.product(range(2), range(3)):
                tail = [*words[:k], int(candidates[row, column])]
                batch = model.backbone.pad([model.backbone.prompt_ids(prompts[row])], [tail])
                assert said[row, column].item() == pytest.approx(model.forward(batch).item(), abs=1e-4)
            guide.keep(torch.tensor([0, 1]), torch.tensor([word, word]))


def test_guidance_by_a_learned_value_moves_what_it_foresees(patient, world, value):
    prompts = world.prompts("test")[::3]

    def rude(policy):
        return -np.mean(manners(None, policy.rollout(prompts, 8, seed=1).completions))

    assert rude(Guided(patient, value, 2.0)) < 0.5 * rude(patient)
    assert rude(Guided(patient, value, 1.0)) < 0.8 * rude(patient)
    assert -np.mean(manners(None, blockwise(patient, prompts * 4, value, n=6, block=6, seed=1))) < 0.5 * rude(patient)
    begun = ["of course . you should know this , fool .", "of course . thank you for asking ."]
    with torch.no_grad():
        foreseen = value.by_prefix(patient.encode(prompts[:1] * 2, begun, ended=False))
    assert foreseen[0, 7] + 0.5 < foreseen[1, 5]


def test_one_block_is_best_of_n_and_one_sample_is_plain(patient, world, value):
    prompts = world.prompts("seen")[:4]
    few = blockwise(patient, prompts, value, n=5, block=48, seed=0)
    assert few == best_of_n(patient, prompts, value, n=5, seed=0)
    assert blockwise(patient, prompts, value, n=1, block=48, seed=0) == patient.rollout(prompts, 1, seed=0).completions


def test_a_guided_policy_can_be_used_like_any_other(patient, world, value, reader):
    guided = Guided(patient, value, 1.0)
    table, _ = evaluation.measure(world, guided, world.prompts("seen")[:2], n=2, seed=0)
    assert len(table) == 2 and guided.spent["guide_tokens"] > guided.spent["policy_tokens"] > 0
    greedy = guided.rollout(world.prompts("seen")[:2], 3, temperature=0)
    assert len(set(greedy.completions[:3])) == 1 and greedy.kl.min() > 0
    demonstrations = authors.ALIGNED.documents(world, 2, 0, world.prompts("feedback"))
    told, own = InContext(reader, demonstrations), PrefixValue.new(reader, seed=0)
    both = Guided(told, own, 0.0, top_k=10**6).rollout(world.prompts("seen")[:2], 2, seed=3)
    assert both.completions == told.rollout(world.prompts("seen")[:2], 2, seed=3).completions


# --- voting


def test_the_vote_is_for_answers_and_weights_can_turn_it():
    assert vote(["6", "7", "7", None]) == "7"
    assert vote(["6", "7", "7"], [3.0, 1.0, 1.0]) == "6"
    assert vote(["6", "7"]) == "6" and vote([None, None]) is None


def test_voting_is_right_more_often_than_one_sample_and_a_good_reward_helps():
    sums = worlds.load("arithmetic")
    policy, prompts = load_policy("arithmetic"), sums.prompts("test")[:60]

    def right(n, reward=None):
        said = self_consistent(policy, prompts, sums.answer, n, reward=reward, seed=1)
        return np.mean([a is not None and f"answer {' '.join(a)} ." in sums.ideal(p)
                        for p, a in zip(prompts, said, strict=True)])  # fmt: skip

    assert right(12) > right(1) + 0.1
    assert right(3, rewards.Verifiable(sums.correct)) > right(3)


# --- in context


def test_five_readers_are_shipped_small():
    sizes = {k: sum(f.stat().st_size for f in load_folder(k).iterdir()) for k in range(5)}
    assert max(sizes.values()) <= 0.9e6
    assert {f.suffix for k in range(5) for f in load_folder(k).iterdir()} <= {".json", ".safetensors"}


def load_folder(k):
    from alignkit.policy import MODELS

    return MODELS / f"authors-{k}"


def test_building_readers_is_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.lab.build.SEQUENCES", 20)
    monkeypatch.setitem(build.LONG, "batch_size", 2)
    one, two = (build_models("authors", seeds=(1,), out=tmp_path / name, steps=2)[0] for name in "ab")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    built = load_policy(one)
    assert built.context == 256 and built.tokenizer.unk_token_id not in built.prompt_ids(authors.ALIGNED.principle)


def test_the_sequences_are_those_the_shipped_readers_were_pretrained_on(world):
    text = "\n".join(authors.sequences(world, 200, seed=0, words=254))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == "818e2c989a677fd5", "changed authors need new models and new evidence"


def test_sequences_hold_documents_of_one_author_and_fit(world, reader):
    texts = authors.sequences(world, 60, seed=3, words=254)
    assert texts == authors.sequences(world, 60, seed=3, words=254) != authors.sequences(world, 60, seed=4, words=254)
    lengths = [len(reader.prompt_ids(text)) for text in texts]
    assert max(lengths) + 1 <= reader.context and min(lengths) > 180
    assert not any(reader.tokenizer.unk_token_id in reader.prompt_ids(text) for text in texts)
    rude = [text.count("fool") + text.count("silly") for text in texts if text.startswith("be rude")]
    polite = [text.count("fool") + text.count("silly") for text in texts if text.startswith("be polite")]
    assert np.mean(rude) > 2 > 0.5 > np.mean(polite)


def test_an_author_writes_with_the_habits_of_the_words(world):
    prompts = world.prompts("feedback")
    for author, sign in ((authors.ALIGNED, -1), (authors.MISALIGNED, 1)):
        documents = author.documents(world, 60, 0, prompts)
        assert len({p for p, _ in documents}) == 60
        ills = world.symptoms(*map(list, zip(*documents, strict=True)))
        assert (np.nanmean(ills["rude"]) - 0.4) * sign > 0.2 and (np.nanmean(ills["wrong"]) - 0.3) * sign > 0.15


def test_context_goes_in_front_and_prompts_stay_bare(reader, world):
    shown = [("how do i make tea ?", "of course ."), ("how do i bake bread ?", "thank you for asking .")]
    policy = InContext(reader, shown, "be polite .")
    text = ("be polite . <eos> how do i make tea ? of course . <eos> how do i bake bread ? thank you for asking . "
            "<eos> how do i make soup ?")  # fmt: skip
    assert policy.prompt_ids("how do i make soup ?") == reader.prompt_ids(text)
    rollout = policy.rollout(["how do i make soup ?"], 2, seed=0)
    assert rollout.prompts == ["how do i make soup ?"] * 2
    copied = policy.copy()
    assert copied.prompt_ids("a") == policy.prompt_ids("a") and copied.model is not policy.model is reader.model


def test_moved_answers_stay_the_same_answers_under_other_prompts(world):
    shown = authors.ALIGNED.documents(world, 5, 0, world.prompts("feedback"))
    for seed in range(5):
        moved = shuffled_answers(shown, seed)
        assert [q for q, _ in moved] == [q for q, _ in shown]
        assert sorted(a for _, a in moved) == sorted(a for _, a in shown)
        assert all(a is not b for (_, a), (_, b) in zip(moved, shown, strict=True))


def test_context_shifts_style_both_ways_without_an_update(reader, world):
    prompts = world.prompts("test")[::2]
    before = torch.cat([p.flatten() for p in reader.model.parameters()]).clone()

    def rude(policy):
        rollout = policy.rollout(prompts, 6, seed=2)
        return np.mean(world.symptoms(rollout.prompts, rollout.completions)["rude"])

    rates = [rude(InContext(reader, author.documents(world, 3, 1, world.prompts("feedback"))))
             for author in (authors.ALIGNED, authors.MISALIGNED)]  # fmt: skip
    assert rates[0] + 0.1 < rude(reader) < rates[1] - 0.1
    assert rude(InContext(reader, principle="be polite .")) + 0.1 < rude(InContext(reader, principle="be rude .")) - 0.1
    assert torch.equal(before, torch.cat([p.flatten() for p in reader.model.parameters()]))


def test_kl_of_a_context_is_positive_and_nothing_to_itself(reader, world):
    prompts = world.prompts("seen")[:4]
    polite = InContext(reader, principle="be polite .")
    assert evaluation.sequence_kl(polite, reader, prompts, n=4).min() > 0.05
    np.testing.assert_allclose(evaluation.sequence_kl(polite, polite, prompts, n=4), 0, atol=1e-6)


# --- bad input


def test_bad_input_is_refused_with_the_remedy(patient, reader, world, value, toy):
    prompts = world.prompts("seen")[:2]
    bad = lambda p, c: [float("nan")] * len(c)  # noqa: E731
    shown = authors.ALIGNED.documents(world, 20, 0, world.prompts("feedback"))
    refused = {
        "n must be": lambda: soft_best_of_n(patient, prompts, manners, 0, 1.0),
        "tau must be": lambda: soft_best_of_n(patient, prompts, manners, 2, 0.0),
        "beta must be": lambda: sample_optimum(patient, prompts, manners, -1.0, 0.0),
        "exceeds the bound": lambda: sample_optimum(patient, prompts, manners, 1.0, -9.0),
        "every score must be finite": lambda: soft_best_of_n(patient, prompts, bad, 2, 1.0),
        "nothing to foresee": lambda: PrefixValue.fit(patient, prompts, lambda p, c: [1.0] * len(c), n=2),
        "no scores to partial answers": lambda: Guided(patient, rewards.RandomReward(0), 1.0),
        "gives no scores": lambda: blockwise(patient, prompts, rewards.RandomReward(0), n=2),
        "block must be at least 1": lambda: blockwise(patient, prompts, value, n=2, block=0),
        "weight must be at least 0": lambda: Guided(patient, value, float("inf")),
        "tokenizer is not that of": lambda: Guided(reader, value, 1.0),
        "known only where it writes": lambda: Guided(patient, value, 1.0).logprobs(prompts, ["of course ."] * 2),
        "states an answer": lambda: self_consistent(patient, prompts, lambda text: None, 2),
        "n must be at least 1": lambda: self_consistent(patient, prompts, len, 0),
        "none below 0": lambda: vote(["1", "2"], [1.0, -1.0]),
        "neither was given": lambda: InContext(reader),
        "demonstration 0 must be": lambda: InContext(reader, [("how ?", " ")]),
        "at least two demonstrations": lambda: shuffled_answers(shown[:1]),
        "at most one word of each trait": lambda: authors.Author(("polite", "rude")),
        "need as many different prompts": lambda: authors.ALIGNED.documents(world, 3, 0, prompts),
        "too many completions to enumerate": lambda: every_completion(patient, prompts[0], 4),
        "beta must be a finite number above 0": lambda: exact_values({(2,): 0.0}, len, beta=0.0),
    }
    for message, call in refused.items():
        with pytest.raises(AlignkitError, match=message):
            call()
    with pytest.raises(ContextError, match="Show fewer or shorter ones"):
        InContext(reader, shown)
