"""Policy gradients: identities by enumeration, limit cases, interruption, and what is refused."""

import math
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
import torch
from conftest import weights_of
from datasets import Dataset

from alignkit.errors import AlignkitError, RewardError
from alignkit.lab.build import make_policy
from alignkit.optimize import (
    METHODS,
    AdaptiveKL,
    Method,
    batch_leave_one_out,
    clipped_surrogate,
    gae,
    group_centered,
    group_normalized,
    kl_estimate,
    leave_one_out,
    policy_gradient,
    reward_to_go,
    whitened,
)
from alignkit.optimize.losses import log_ratio, policy_loss
from alignkit.worlds.bandit import BanditWorld, kl, optimum

P = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)  # one prompt, three outcomes
R = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
TRUE = P * (R - (P * R).sum())  # gradient of the expected reward with respect to the logits
GREEDY = R[P.argmax()]
BY_NAME = pytest.mark.parametrize("name", list(METHODS))


def groups(p, k):
    """Every unordered group of k outcomes, (M, k), and its probability."""
    index = torch.tensor(list(combinations_with_replacement(range(len(p)), k)))
    counts = torch.stack([(index == j).sum(1) for j in range(len(p))], 1)
    orders = math.lgamma(k + 1) - torch.lgamma(counts.double() + 1).sum(1)
    return index, (orders + p.log()[index].sum(1)).exp()


def gradient_of(advantages_of, p=P, r=R, k=4):
    """Exact mean and total variance of the gradient from one group of k."""
    index, weight = groups(p, k)
    score = torch.eye(len(p), dtype=p.dtype)[index] - p
    each = (advantages_of(r[index])[..., None] * score).mean(1)
    mean = (weight[:, None] * each).sum(0)
    return mean, (weight * (each - mean).pow(2).sum(1)).sum()


def cosine(a, b):
    return (torch.dot(a, b) / a.norm() / b.norm()).item()


# -- advantages: bias and variance, by enumeration -------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("advantages_of", [lambda r: r, leave_one_out, lambda r: r - GREEDY],
                         ids=["none", "rloo", "remax"])  # fmt: skip
def test_these_baselines_do_not_bias_the_gradient(advantages_of, k):
    mean, _ = gradient_of(advantages_of, k=k)
    torch.testing.assert_close(mean, TRUE, atol=1e-12, rtol=0)


def test_the_baseline_from_the_batch_does_not_bias_either():
    """Two prompts, pooled: one completion's baseline may come from the other prompt."""
    p, r = [P, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)], [R, -3 * R]
    sides = [groups(q, 2) for q in p]
    mean = torch.zeros(2, 3, dtype=torch.float64)
    for (a, wa), (b, wb) in product(*(list(zip(*side, strict=True)) for side in sides)):
        advantage = batch_leave_one_out(torch.cat([r[0][a], r[1][b]])).view(2, 2, 1)
        score = torch.stack([torch.eye(3).double()[i] - q for i, q in zip((a, b), p, strict=True)])
        mean += wa * wb * (advantage * score).mean(1)
    true = torch.stack([q * (s - (q * s).sum()) for q, s in zip(p, r, strict=True)])
    torch.testing.assert_close(mean, true, atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_centering_by_the_groups_mean_shrinks_the_gradient_and_keeps_its_direction(k):
    mean, _ = gradient_of(group_centered, k=k)
    torch.testing.assert_close(mean, (k - 1) / k * TRUE, atol=1e-12, rtol=0)


def test_dividing_by_the_groups_deviation_turns_the_gradient():
    for k in (4, 8):
        mean, _ = gradient_of(lambda r: group_normalized(r, eps=1e-9), k=k)
        assert cosine(mean, TRUE) < 0.999
        kept, _ = gradient_of(leave_one_out, k=k)
        assert cosine(kept, TRUE) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.98])
def test_dividing_by_the_deviation_raises_the_weight_of_hard_and_easy_prompts(p):
    """Right or wrong with probability p: the weight relative to p (1 - p) tends to sqrt(k-1 / k) / sqrt(p (1-p))."""
    both, right = torch.tensor([1 - p, p], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean, _ = gradient_of(lambda r: group_normalized(r, eps=1e-9), both, right, k=200)
    weight = mean[1].item() / (p * (1 - p))
    assert weight == pytest.approx(math.sqrt(199 / 200) / math.sqrt(p * (1 - p)), rel=0.25 if p != 0.5 else 0.01)


def test_a_baseline_lowers_the_variance_and_a_larger_group_lowers_it_more():
    away = R + 5  # far from 0, rewards without a baseline are mostly noise
    noise = {k: [k * gradient_of(f, r=away, k=k)[1].item() for f in (lambda r: r, leave_one_out)] for k in (2, 4, 8)}
    plain, rloo = zip(*noise.values(), strict=True)
    assert plain[0] == pytest.approx(plain[2]) and max(rloo) < 0.2 * plain[0]  # per completion
    assert rloo[0] > rloo[1] > rloo[2]


def test_gae_by_hand():
    r, v = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.8]])
    errors = [0.4 - 0.5, 0.8 - 0.4, 1.0 - 0.8]
    hand = [errors[0] + 0.5 * (errors[1] + 0.5 * errors[2]), errors[1] + 0.5 * errors[2], errors[2]]
    torch.testing.assert_close(gae(r, v, torch.ones(1, 3), lam=0.5), torch.tensor([hand]))
    shrunk = 0.9 * 0.4 - 0.5 + 0.9 * 0.5 * (0.9 * 0.8 - 0.4 + 0.9 * 0.5 * 0.2)
    assert gae(r, v, torch.ones(1, 3), gamma=0.9, lam=0.5)[0, 0].item() == pytest.approx(shrunk)


def test_limits_of_gae():
    torch.manual_seed(0)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    r, v = torch.randn(2, 4) * mask, torch.randn(2, 4)  # values of padding must not matter
    ahead = torch.cat([(v * mask)[:, 1:], torch.zeros(2, 1)], 1)
    torch.testing.assert_close(gae(r, v, mask, lam=1.0), (reward_to_go(r) - v) * mask)
    torch.testing.assert_close(gae(r, v, mask, lam=0.0), (r + ahead - v) * mask)
    torch.testing.assert_close(gae(r, torch.zeros(2, 4), mask, lam=1.0), reward_to_go(r) * mask)
    alone = gae(r[1:, :2], v[1:, :2], mask[1:, :2])
    torch.testing.assert_close(gae(r, v, mask)[1:, :2], alone)


def test_whitening_looks_at_tokens_and_not_at_padding():
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    out = whitened(torch.tensor([[1.0, 2, 3], [6, 99, -99]]), mask)
    kept = out[mask > 0]
    assert kept.mean().item() == pytest.approx(0, abs=1e-6) and kept.std().item() == pytest.approx(1, abs=1e-5)
    assert (out[mask == 0] == 0).all()


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.25, 1.0, 1.25), (1.3, 1.0, 0.0), (1.3, -1.0, -1.3), (0.79, -1.0, 0.0), (0.81, -1.0, -0.81)],
)
def test_the_upper_clip_has_a_bound_of_its_own(ratio, advantage, slope):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    gain = clipped_surrogate(logp, torch.zeros(1), torch.tensor([advantage]), clip=0.2, clip_high=0.28)
    assert torch.autograd.grad(gain.sum(), logp)[0].item() == pytest.approx(slope)


def test_log_ratios_of_tokens_sequences_and_completions():
    logp, old = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]]), torch.zeros(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    token, sequence, whole = (log_ratio(logp, old, mask, level) for level in ("token", "sequence", "completion"))
    torch.testing.assert_close(token, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0]]))
    torch.testing.assert_close(whole, torch.tensor([[0.6], [0.4]]))
    torch.testing.assert_close(sequence, torch.tensor([[0.2], [0.4]]))
    assert sequence[1] == token[1, 0]  # of one token: all the same
    with pytest.raises(AlignkitError, match="level must be one of token, sequence, completion, not 'word'"):
        log_ratio(logp, old, mask, "word")


def test_what_the_sum_over_tokens_is_divided_by():
    """Two wrong answers, of one token and of three: by its own length the long one is blamed less for each token."""
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 1]])
    zero, blame = torch.zeros(2, 3), -mask
    units = {"completion": mask.sum(1), "batch": mask.sum() / 2, "limit": 48, "one": 1.0}
    by_hand = {"completion": [1, 1 / 3], "batch": [1 / 2, 1 / 2], "limit": [1 / 48, 1 / 48], "one": [1, 1]}
    for name, unit in units.items():
        logp = zero.clone().requires_grad_()
        policy_loss(logp, zero, zero, mask, blame, unit).sum().backward()
        torch.testing.assert_close(logp.grad, torch.tensor(by_hand[name])[:, None] * mask)


def test_policy_loss_by_hand():
    logp, old, ref = torch.tensor([[0.1, 0.3]]), torch.zeros(1, 2), torch.tensor([[0.0, 0.2]])
    mask = torch.ones(1, 2)
    value = policy_loss(logp, old, ref, mask, 2 * mask, 2.0, clip=0.2, beta=0.5, estimator="k1")
    assert value.item() == pytest.approx(-(2 * math.exp(0.1) + 2 * 1.2 - 0.5 * (0.1 + 0.1)) / 2, abs=1e-6)


def test_on_policy_one_action_a_completion_is_the_sum_over_tokens():
    """GRPO's token ratios, deviation and length left out, is RLOO times (k-1)/k."""
    torch.manual_seed(1)
    logp = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).double()
    r, old = torch.randn(1, 4, dtype=torch.float64), logp.detach()
    slopes = []
    for advantages_of, ratio, unit in (
        (leave_one_out, "completion", mask.sum(1)),
        (group_centered, "token", 1.0),
    ):
        advantage = advantages_of(r).flatten()[:, None] * mask
        loss = policy_loss(logp, old, old, mask, advantage, unit, ratio).mean()
        slopes.append(torch.autograd.grad(loss, logp)[0])
    torch.testing.assert_close(slopes[1], 3 / 4 * slopes[0])


# -- the KL: values, gradients, and where they lead ------------------------------------------------

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def kl_gradient(theta, how):
    """Exact expected gradient of the KL term with respect to the logits, sampling on policy."""
    theta = theta.detach().requires_grad_()
    logp = torch.log_softmax(theta, -1)
    p, kind = logp.detach().exp(), how.split()[0]
    if how.endswith("reward"):
        loss = (p * kl_estimate(logp.detach(), REF, kind) * logp).sum()
    elif how == "true":
        loss = kl(logp, REF).sum()
    else:
        loss = (p * kl_estimate(logp, REF, kind)).sum()
    return torch.autograd.grad(loss, theta)[0]


def test_values_of_the_kl_estimators():
    logp = P.log()
    means = {kind: (P * kl_estimate(logp, REF, kind)).sum() for kind in ("k1", "k2", "k3")}
    assert means["k1"].item() == pytest.approx(kl(logp, REF).item(), abs=1e-14)
    assert means["k3"].item() == pytest.approx(kl(logp, REF).item(), abs=1e-14)
    assert abs(means["k2"] - means["k1"]) > 1e-4
    assert (kl_estimate(logp, REF, "k3") >= 0).all() and (kl_estimate(logp, REF, "k1") < 0).any()


def test_gradients_of_the_kl_estimators():
    theta = P.log()
    true = kl_gradient(theta, "true")
    torch.testing.assert_close(kl_gradient(theta, "k1 reward"), true, atol=1e-14, rtol=0)
    torch.testing.assert_close(kl_gradient(theta, "k2 loss"), true, atol=1e-14, rtol=0)
    torch.testing.assert_close(kl_gradient(theta, "k1 loss"), torch.zeros(3).double(), atol=1e-14, rtol=0)
    torch.testing.assert_close(kl_gradient(theta, "k3 loss"), P - REF.exp(), atol=1e-14, rtol=0)  # KL(ref || pi)
    assert (kl_gradient(theta, "k3 loss") - true).norm() > 0.05 * true.norm()


def descend(how, beta=1.0, steps=6000):
    theta = REF.clone()
    for _ in range(steps):
        p = torch.softmax(theta, -1)
        theta = theta + p * (R - (p * R).sum()) - beta * kl_gradient(theta, how)
    return torch.log_softmax(theta, -1)


def test_where_each_form_of_the_penalty_leads():
    best = optimum(REF, R, 1.0)
    for how in ("k1 reward", "k2 loss"):
        torch.testing.assert_close(descend(how, steps=3000), best, atol=1e-6, rtol=0)
    forward = descend("k3 loss", steps=3000)
    assert kl(forward, best) > 1e-3 and forward.argmax() == best.argmax()
    assert descend("k1 loss", steps=3000).exp().max() > 0.999  # no penalty at all


def test_the_optimum_is_the_best_of_the_penalized_objective():
    world = BanditWorld(seed=1)
    r, ref = torch.from_numpy(world.table), world.reference(1)
    value = lambda logp: ((logp.exp() * r).sum(-1) - 0.3 * kl(logp, ref)).sum()  # noqa: E731
    best = optimum(ref, r, 0.3)
    for seed in range(5):
        near = best + 0.1 * torch.randn(r.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert value(best) > value(torch.log_softmax(near, -1))


# -- the loop --------------------------------------------------------------------------------------

PROMPTS = ["please explain iron ?", "tell me about glass .", "how do i cook rice ?", "please explain salt ?"]
FAST = dict(steps=3, prompts_per_step=2, group_size=4, max_new_tokens=8, progress=False)


def thanks(prompts, completions):
    return [float("thank you" in c) for c in completions]


def words(prompts, completions):
    return [0.1 * len(c) for c in completions]


def constant(prompts, completions):
    return [0.1] * len(completions)


def run(policy, name, reward=words, prompts=PROMPTS, **options):
    return policy_gradient(policy, prompts, reward, METHODS[name], **{**FAST, **options})


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("rloo", "grpo")])
def test_every_method_raises_the_reward(world, patient, name):
    more = {"minibatches": 4} if name == "ppo" else {}
    treated = run(patient, name, thanks, world.prompts(), beta=0.02, steps=10, prompts_per_step=4, group_size=8,
                  learning_rate=2e-3, max_new_tokens=40, **more)  # fmt: skip
    history = treated.history
    assert history["reward"][-3:].mean() > history["reward"][:3].mean() + 0.2
    assert treated.name == f"assistant-0 + {name}"


def test_filtering_spends_fewer_backward_rows_and_draws_fill_them_up(tiny):
    """Half of the prompts are rewarded all the same: nothing to learn there."""

    def half(prompts, completions):
        return [w * (p in PROMPTS[:2]) for p, w in zip(prompts, words(prompts, completions), strict=True)]

    options = dict(reward=half, steps=6, prompts_per_step=2, group_size=6)
    plain = run(tiny, "dapo", filter=False, **options)
    filtered, filled = run(tiny, "dapo", **options), run(tiny, "dapo", draws=4, **options)
    rows = [p.spent["backward_rows"] for p in (plain, filtered, filled)]
    assert rows[1] == round(rows[0] * (1 - filtered.history["zero_variance"].mean())) < rows[0]
    assert rows[2] == rows[0] == 6 * 12
    sampled = [p.spent["completions_sampled"] for p in (plain, filtered, filled)]
    assert sampled[0] == sampled[1] < sampled[2] <= 4 * sampled[0]


def test_when_no_group_differs_the_filter_leaves_the_policy_alone(tiny):
    treated = run(tiny, "dapo", constant, draws=2)
    assert torch.equal(weights_of(treated), weights_of(tiny))
    assert treated.spent["updates"] == 0 and len(treated.history) == 3 and (treated.history["zero_variance"] == 1).all()


@pytest.mark.parametrize("name", ["reinforce", "remax", "dr_grpo", "gspo"])
def test_equal_rewards_teach_nothing(tiny, name):
    treated = run(tiny, name, constant, beta=0.0)
    assert torch.equal(weights_of(treated), weights_of(tiny))


def test_the_adaptive_weight_follows_its_target():
    keep = AdaptiveKL(target=2.0, gain=0.5)
    assert keep.next(0.2, 2.0) == 0.2
    assert keep.next(0.2, 2.2) == pytest.approx(0.2 * (1 + 0.5 * 0.1))
    assert keep.next(0.2, 100.0) == pytest.approx(0.2 * 1.1) and keep.next(0.2, 0.0) == pytest.approx(0.2 * 0.9)
    for wrong in ({"target": 0.0}, {"target": 1.0, "start": -1.0}):
        with pytest.raises(AlignkitError, match="AdaptiveKL: (target|start) must be a finite number above 0"):
            AdaptiveKL(**wrong)


def test_an_adaptive_penalty_moves_the_kl_toward_its_target(world, patient):
    options = dict(reward=thanks, prompts=world.prompts(), steps=16, prompts_per_step=4, group_size=8,
                   learning_rate=2e-3, max_new_tokens=24)  # fmt: skip
    near, far = (
        run(patient, "rloo", beta=AdaptiveKL(target, start=0.3, gain=2.0), **options).history for target in (0.3, 4.0)
    )
    assert near["kl"][-6:].mean() < 0.8 * far["kl"][-6:].mean()
    assert near["beta"].iloc[-1] > 5 * far["beta"].iloc[-1] and near["beta"][0] == far["beta"][0] == 0.3


def test_an_entropy_bonus_raises_entropy(patient, world):
    """A constant reward teaches nothing: what moves is the bonus."""
    options = dict(reward=constant, prompts=world.prompts(), beta=0.0, steps=5, prompts_per_step=8, learning_rate=2e-3)
    flat, still = (run(patient, "rloo", entropy=e, **options).history["entropy"][-2:].mean() for e in (1.0, 0.0))
    assert flat > still + 0.1


def test_the_critic_learns_what_to_expect(tiny):
    error = run(tiny, "ppo", lambda p, c: [1.0] * len(c), steps=12, learning_rate=1e-6, beta=0.0, minibatches=4,
                critic_rate=2e-2).history["critic_error"]  # fmt: skip
    assert error.iloc[0] > 0.4 and error.iloc[-1] < 0.2


def test_several_minibatches_let_the_sequence_clip_act(patient, world):
    options = dict(prompts=world.prompts(), minibatches=4, prompts_per_step=4, learning_rate=1e-3, max_new_tokens=24)
    tight = run(patient, "gspo", **options).history["clip_fraction"].mean()
    wide = run(patient, "gspo", clip=10.0, clip_high=10.0, **options).history["clip_fraction"].mean()
    assert tight > 0.05 and wide == 0


@pytest.mark.parametrize("name", ["rloo", "remax"])
def test_a_reward_is_handed_the_sampled_tokens_if_it_asks_for_them(tiny, name):
    """As by TRL: prompts, completions, completion_ids and the data's columns, by name."""
    seen, asked = [], Dataset.from_dict({"prompt": PROMPTS, "answer": ["iron", "glass", "rice", "salt"]})

    def reward(completions, completion_ids, answer, **kwargs):
        assert all(type(ids) is list and type(ids[0]) is int for ids in completion_ids)
        assert set(kwargs) == {"prompts"}
        seen.extend(zip(completions, completion_ids, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    treated = run(tiny, name, reward, asked, max_new_tokens=3)
    end = tiny.tokenizer.eos_token_id
    assert len(seen) == treated.spent["completions_sampled"]
    assert any(ids[-1] != end for _, ids in seen)  # nobody sampled an end there, and none is handed over
    for text, ids in seen:
        assert 1 <= len(ids) <= 3 and tiny.tokenizer.decode([i for i in ids if i != end]) == text


# -- interruption ----------------------------------------------------------------------------------


class PowerCut(Exception):
    pass


def cut_at(call):
    """The reward, and the list of its calls; the given one never returns."""
    calls = []

    def reward(prompts, completions):
        calls.append(len(completions))
        if len(calls) == call:
            raise PowerCut
        return words(prompts, completions)

    return reward, calls


LONG = dict(steps=14, prompts_per_step=2, group_size=3, max_new_tokens=6, learning_rate=3e-3)
KINDS = {
    "rloo": {},
    "ppo": dict(minibatches=2),
    "grpo": dict(beta=AdaptiveKL(target=0.5, start=0.1, gain=2.0), epochs=2),
    "dapo": dict(draws=2, entropy=0.01),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_an_interrupted_run_goes_on_to_the_same_end(tiny, tmp_path, name):
    options = LONG | KINDS[name]
    whole = run(tiny, name, **options)
    failing, _ = cut_at(13)
    with pytest.raises((PowerCut, RewardError)):
        run(tiny, name, failing, checkpoint=tmp_path / "run", **options)
    reward, calls = cut_at(None)
    again = run(tiny, name, reward, checkpoint=tmp_path / "run", **options)
    assert 0 < len(calls) < 10  # it did not start anew
    assert torch.equal(weights_of(again), weights_of(whole))
    assert again.history.equals(whole.history)
    count = ("completions_sampled", "forward_rows", "backward_rows", "updates")
    assert [again.spent[c] for c in count] == [whole.spent[c] for c in count]


def test_a_finished_run_is_read_and_not_repeated(tiny, tmp_path):
    first = run(tiny, "rloo", checkpoint=tmp_path / "run")
    reward, calls = cut_at(None)
    again = run(tiny, "rloo", reward, checkpoint=tmp_path / "run")
    assert not calls and torch.equal(weights_of(first), weights_of(again)) and first.history.equals(again.history)


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(tiny, tmp_path):
    file = tmp_path / "run"
    run(tiny, "rloo", checkpoint=file)
    with pytest.raises(AlignkitError, match="another run: clip|another run: changes"):
        run(tiny, "rloo", checkpoint=file, clip=0.1)
    with pytest.raises(AlignkitError, match="another run: beta, learning_rate differ"):
        run(tiny, "rloo", checkpoint=file, learning_rate=1e-5, beta=0.7)
    with pytest.raises(AlignkitError, match="another run: policy, reference differ"):
        run(make_policy(["iron", "salt"], seed=5, hidden=16, layers=1), "rloo", checkpoint=file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AlignkitError, match="not a checkpoint that can be read; delete it"):
        run(tiny, "rloo", checkpoint=file)


# -- what is refused, and what is not --------------------------------------------------------------


def test_a_reference_with_another_vocabulary_is_refused(tiny, toy):
    with pytest.raises(AlignkitError, match="different vocabularies"):
        run(tiny, "rloo", reference=toy)


@BY_NAME
def test_which_methods_need_a_group(tiny, name):
    if name in ("reinforce", "remax", "reinforce++", "ppo"):
        assert len(run(tiny, name, group_size=1).history) == 3
    else:
        with pytest.raises(AlignkitError, match="group_size"):
            run(tiny, name, group_size=1)


def test_a_single_completion_has_no_baseline_from_the_batch(tiny):
    with pytest.raises(AlignkitError, match="at least two completions; sample more prompts"):
        run(tiny, "reinforce", group_size=1, prompts_per_step=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_must_be_finite(tiny, bad):
    with pytest.raises(RewardError, match=r"for row 2 \(1 such rows\).*must be finite"):
        run(tiny, "rloo", lambda p, c: [0.0, 1.0, bad, *[0.0] * (len(c) - 3)])


@pytest.mark.parametrize("who", ["policy", "reference"])
def test_a_model_with_broken_weights_is_named(tiny, who):
    broken = tiny.copy()
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(float("nan"))
    policies = (broken, tiny) if who == "policy" else (tiny, broken)
    with pytest.raises(AlignkitError, match=rf"step 0: the {who} gives completion 0 .* not finite; lower"):
        run(policies[0], "rloo", reference=policies[1])


@BY_NAME
def test_empty_completions_are_scored_like_others(toy, name):
    seen = []

    def short(prompts, completions):
        seen.extend(completions)
        return [-float(len(c.split())) for c in completions]

    treated = run(toy, name, short, prompts=["a", "b"], group_size=16, learning_rate=1e-2)
    assert "" in seen and np.isfinite(weights_of(treated).numpy()).all()


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_beta_must_be_a_weight(tiny, beta):
    with pytest.raises(AlignkitError, match="rloo: beta must be at least 0"):
        run(tiny, "rloo", beta=beta)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("kl", "prior", "kl must be one of reward, loss"), ("estimator", "k4", "estimator must be one of k1, k2, k3"),
     ("ratio", "word", "ratio must be one of token"), ("loss_type", "words", "loss_type must be one of completion"),
     ("clip", 0.0, "clip must be a finite number above"), ("clip_high", -0.1, "clip_high must be a finite number")],
)  # fmt: skip
def test_fields_of_a_method_are_checked(tiny, field, value, message):
    with pytest.raises(AlignkitError, match=message):
        Method("mine", lambda e, beta: e.mask, **{field: value})
    with pytest.raises(AlignkitError, match=f"grpo: {message}"):
        run(tiny, "grpo", **{field: value})


@pytest.mark.parametrize("option", [{"draws": 0}, {"minibatches": 0}, {"epochs": 0}, {"prompts_per_step": 0}])
def test_counts_start_at_one(tiny, option):
    with pytest.raises(AlignkitError, match="must be at least 1"):
        run(tiny, "ppo", **option)


def test_credit_is_one_of_two_words(tiny):
    with pytest.raises(AlignkitError, match="credit must be one of finest, response, not 'sentence'"):
        run(tiny, "rloo", credit="sentence")


def test_a_method_of_your_own_is_an_advantage_and_a_few_switches(tiny):
    """Rewards minus a constant, as one action a completion: nothing else is needed."""
    mine = Method("mine", lambda e, beta: (e.scores - 0.5)[:, None] * e.mask, ratio="completion")
    treated = policy_gradient(tiny, PROMPTS, words, mine, **FAST)
    assert treated.name.endswith("+ mine") and not torch.equal(weights_of(treated), weights_of(tiny))
