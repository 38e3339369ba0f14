"""Several objectives: fronts and hypervolume by hand, scalarization by enumeration, soups, MODPO, GDPO, constraints."""

import numpy as np
import pytest
import torch
from conftest import finite_differences, weights_of
from datasets import Dataset
from scipy.optimize import minimize_scalar

from alignkit import evaluation, optimize, rewards, worlds
from alignkit.errors import AlignkitError, DataError, RewardError
from alignkit.lab.build import MIXED, build_patient, make_policy
from alignkit.optimize.gradients import reward_gradient
from alignkit.policy import load_policy
from alignkit.worlds.bandit import BanditWorld, expectation, kl, optimum

QUIET = {"progress": False}
REF = BanditWorld(1, 6, seed=0).reference(seed=0)
ONE, TWO = (torch.from_numpy(BanditWorld(1, 6, seed=s).table) for s in (0, 1))
BETA = 0.5


def words(prompts, completions):
    return np.array([len(c.split()) for c in completions], dtype=float)


def thanks(prompts, completions):
    return np.array([float("thank" in c) for c in completions])


PARTS = {"short": lambda p, c: -words(p, c), "thanks": thanks}
P, C = ["a", "a", "b", "b"], ["thank you .", "no .", "yes .", "thank you for it ."]


# -- fronts ------------------------------------------------------------------------------------------------------


def test_non_dominated_points_by_hand():
    points = [(0, 3), (1, 2), (1, 1), (2, 2), (3, 0), (2, 2), (-1, 3)]
    assert evaluation.non_dominated(points).tolist() == [True, False, False, True, True, True, False]


def test_hypervolume_by_hand():
    assert evaluation.hypervolume([(1, 3), (2, 2), (3, 1)], (0, 0)) == 3 + 2 + 1
    assert evaluation.hypervolume([(1, 1), (2, 2)], (0, 0)) == 4, "a dominated point adds nothing"
    assert evaluation.hypervolume([(1, 3), (-5, 9)], (0, 0)) == 3, "nor does one that is below the reference"
    assert evaluation.hypervolume([(1, 3)], (2, 0)) == 0


def test_hypervolume_grows_with_a_point_that_none_dominates():
    rng = np.random.default_rng(0)
    points = rng.random((8, 2))
    front = points[evaluation.non_dominated(points)]
    assert np.isclose(evaluation.hypervolume(points, (0, 0)), evaluation.hypervolume(front, (0, 0)))
    dots = rng.random((200_000, 2))  # the area by throwing darts
    hit = (dots[:, None] <= front[None]).all(2).any(1).mean()
    assert abs(hit - evaluation.hypervolume(points, (0, 0))) < 0.01


@pytest.mark.parametrize("points", [[(1, np.nan)], [1, 2, 3]])
def test_points_that_are_no_points_are_named(points):
    with pytest.raises(AlignkitError, match="points must be finite"):
        evaluation.non_dominated(points)
    with pytest.raises(AlignkitError, match="two objectives"):
        evaluation.hypervolume([(1, 2, 3)], (0, 0))


def test_the_tilted_front_is_the_exact_optimum():
    """Outcomes repeated in proportion to a uniform reference are the reference itself."""
    values = torch.stack([ONE, TWO])
    uniform = torch.full((1, 6), 1 / 6, dtype=torch.float64).log()
    front = evaluation.tilted_front(values.numpy(), [(0.3, 0.7), (1, 0)], beta=BETA, names=["one", "two"])
    for row, w in zip(front.to_dict("records"), [(0.3, 0.7), (1, 0)], strict=True):
        best = optimum(uniform, w[0] * ONE + w[1] * TWO, BETA)
        assert np.isclose(row["one"], expectation(best, ONE)) and np.isclose(row["two"], expectation(best, TWO))
        assert np.isclose(row["kl"], kl(best, uniform))
    at_kl = evaluation.tilted_front(values.numpy(), [(0.3, 0.7)], kl=0.4)
    assert np.isclose(at_kl["kl"][0], 0.4)


def test_a_front_needs_a_kl_or_a_beta_and_a_weight_for_each_objective():
    with pytest.raises(AlignkitError, match="either kl"):
        evaluation.tilted_front(np.zeros((2, 1, 4)), [(1, 1)])
    with pytest.raises(AlignkitError, match="3 weights need"):
        evaluation.tilted_front(np.zeros((2, 1, 4)), [(1, 1, 1)], beta=1.0)


# -- where weighted sums suffice and where they don't ------------------------------------------------------------


def best_weighted(w: float) -> torch.Tensor:
    return optimum(REF, w * ONE + (1 - w) * TWO, BETA)


def penalized(logp: torch.Tensor, w: float) -> float:
    value = w * expectation(logp, ONE) + (1 - w) * expectation(logp, TWO) - BETA * kl(logp, REF)
    return value.item()


def test_with_stochastic_policies_max_min_is_a_weighted_sum_at_some_weight():
    """max_pi min_k E[r_k] - beta KL = min_w max_pi E[w . r] - beta KL, the latter by line search over w."""
    dual = minimize_scalar(lambda w: penalized(best_weighted(w), w), bounds=(0, 1), method="bounded",
                           options={"xatol": 1e-9})  # fmt: skip
    logits = REF.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def soft_loss(sharp):
        logp = torch.log_softmax(logits, -1)
        both = torch.cat([expectation(logp, ONE), expectation(logp, TWO)])
        return (torch.logsumexp(-sharp * both, 0) / sharp + BETA * kl(logp, REF)).sum()

    for sharp in (10.0, 100.0, 1e4):  # min as the limit of a smooth one

        def closure(sharp=sharp):
            optimizer.zero_grad()
            loss = soft_loss(sharp)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert abs(-soft_loss(1e4).item() - dual.fun) < 1e-3


def test_no_mixture_of_policies_lies_beyond_the_front():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (torch.from_numpy(rng.dirichlet(np.ones(6))[None]) for _ in range(2))
        mix = (0.4 * a + 0.6 * b).log()
        for w in np.linspace(0, 1, 5):
            ends = 0.4 * penalized(a.log(), w) + 0.6 * penalized(b.log(), w)
            assert ends <= penalized(mix, w) + 1e-12 <= penalized(best_weighted(w), w) + 1e-9


def test_deterministic_policies_have_points_that_no_weight_finds():
    points = np.array([(0.0, 1.0), (0.4, 0.4), (1.0, 0.0)])
    assert evaluation.non_dominated(points).all()
    found = {int((points @ (w, 1 - w)).argmax()) for w in np.linspace(0, 1, 1001)}
    assert found == {0, 2} and points.min(1).argmax() == 1


# -- rewards -----------------------------------------------------------------------------------------------------


def test_weighted_sum_and_worst_by_hand():
    judged = rewards.Weighted(PARTS, {"short": 0.5, "thanks": 2.0})(P, C)
    assert judged.scores.tolist() == [0.5, -1.0, -1.0, -0.5]
    assert judged.aspects["short"].tolist() == [-3.0, -2.0, -2.0, -5.0]
    assert rewards.Worst(PARTS)(P, C).scores.tolist() == [-3, -2, -2, -5]


def test_objectives_come_from_a_rewards_aspects(world):
    prompts, texts = world.prompts()[:2], ["thank you for asking .", "sorry , i can not help with that ."]
    weighted = rewards.Weighted(rewards.GoldReward(world), world.weights)
    assert np.allclose(weighted(prompts, texts).scores, world.gold(prompts, texts))
    assert weighted.card.construction_basis == "rule-based" and weighted.card.objective == "multi"


def test_max_min_moves_weight_to_what_lags_and_stays_a_distribution():
    reward = rewards.MaxMin(PARTS, rate=0.5)
    assert np.array_equal(reward(P, C).scores, reward(P, C).scores) and not reward.weights, "scoring moves nothing"
    reward.update(reward(P, C))
    first = dict(reward.weights)
    assert first["short"] > 0.5 and np.isclose(sum(first.values()), 1)
    reward.update(reward(P, C))
    assert reward.weights["short"] > first["short"] and len(reward.history) == 2
    level = rewards.MaxMin({"short": lambda p, c: 3 - words(p, c), "thanks": lambda p, c: thanks(p, c) - 0.5})
    level.update(level(P, C))
    assert np.allclose(list(level.weights.values()), 0.5)


def test_the_multiplier_rises_while_the_budget_is_broken_and_falls_while_there_is_room():
    parts = {"good": lambda p, c: np.ones(len(c)), "cost": thanks}
    reward = rewards.Lagrangian(parts, "good", "cost", budget=0.25, rate=1.0, start=0.5)
    assert np.allclose(reward(P, C).scores, (1 - 0.5 * thanks(P, C)) / 1.5)
    reward.update(reward(P, C))
    assert np.isclose(reward.multiplier, 0.75)
    kept = reward.state()
    for _ in range(10):
        reward.update(reward(P, ["no ."] * 4))
    assert reward.multiplier == 0.0, "never below 0"
    assert [row["multiplier"] for row in reward.history[:3]] == [0.5, 0.75, 0.5]
    reward.restore(kept)
    assert reward.multiplier == 0.75 and len(reward.history) == 1


def test_training_moves_the_reward_once_a_batch_and_choosing_never(tiny):
    reward = rewards.Lagrangian(PARTS, "short", "thanks", budget=-1.0, rate=0.5)
    prompts = ["please explain iron ?", "please explain salt ?"]
    few = {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 6, **QUIET}
    optimize.rloo(tiny, prompts, rewards.Shaped(reward), steps=3, **few)
    assert len(reward.history) == 3 and reward.multiplier > 1.0, "also inside another reward"
    optimize.best_of_n(tiny, prompts, reward, 2, max_new_tokens=6)
    assert len(reward.history) == 3


def test_lagrangian_finds_the_constrained_optimum_of_the_bandit():
    """Exact policies, exact means: dual ascent stops where the budget is met, and no weighted sum that meets it has
    more of the goal."""
    budget, lam = -0.2, 0.0
    for _ in range(4000):
        policy = optimum(REF, ONE - lam * TWO, BETA)
        lam = max(0.0, lam + 0.05 * (expectation(policy, TWO).item() - budget))
    assert abs(expectation(policy, TWO).item() - budget) < 1e-6 and lam > 0

    def worth(p):
        return expectation(p, ONE).item() - BETA * kl(p, REF).item()

    others = [optimum(REF, ONE - nu * TWO, BETA) for nu in np.linspace(0, 10, 400)]
    assert worth(policy) >= max(worth(p) for p in others if expectation(p, TWO).item() <= budget) - 1e-9


def test_decoupled_with_one_objective_is_grpos_normalization():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5))
    values[2] = 1.0
    prompts = [f"p{i}" for i in range(3) for _ in range(5)]
    one = rewards.Decoupled({"r": lambda p, c: values.flatten()}, whiten=False)
    expected = optimize.group_normalized(torch.from_numpy(values)).flatten()
    assert np.allclose(one(prompts, [""] * 15).scores, expected)
    order = rng.permutation(15)  # a prompt's completions need not stand together
    mixed = rewards.Decoupled({"r": lambda p, c: values.flatten()[order]}, whiten=False)
    assert np.allclose(mixed([prompts[i] for i in order], [""] * 15).scores, expected[order])


def test_decoupled_keeps_apart_what_the_sum_confuses():
    """Two binary rewards, two rollouts, as in the paper's example: (0, 1) and (0, 2) get one advantage from the sum."""
    def advantages(a, b):
        pair = np.array([a, b], dtype=float)
        summed = optimize.group_normalized(torch.from_numpy(pair.sum(1))[None])[0]
        parts = {"x": lambda p, c: pair[:, 0], "y": lambda p, c: pair[:, 1]}
        return summed.numpy(), rewards.Decoupled(parts, whiten=False)(["p", "p"], ["", ""]).scores

    one, two = advantages((0, 0), (1, 0)), advantages((0, 0), (1, 1))
    assert np.allclose(one[0], two[0], atol=2e-3) and np.allclose(two[1], 2 * one[1])


def test_rewards_asked_for_in_the_prompt():
    menu = {"w0": {"short": 1.0}, "w1": {"thanks": 1.0}}
    reward = rewards.Asked(PARTS, menu)
    prompts = rewards.Asked.ask("w0", P[:2]) + rewards.Asked.ask("w1", P[2:])
    assert prompts[0] == "w0 a" and reward(prompts, C).scores.tolist() == [-3, -2, 0, 1]
    with pytest.raises(RewardError, match="starts with 'x', not with one of w0, w1"):
        reward(["x a"], ["no ."])


def test_each_task_has_its_own_reward_and_unit():
    reward = rewards.ByTask({"a": thanks, "b": words}, lambda prompt: prompt, {"b": 2.0})
    assert reward(P, C).scores.tolist() == [1.0, 0.0, 1.0, 2.5]
    with pytest.raises(RewardError, match="no reward for task 'z'"):
        reward(["z"], ["no ."])


def test_bad_objectives_are_named():
    with pytest.raises(RewardError, match="no objective 'long'; there are short, thanks"):
        rewards.Weighted(PARTS, {"long": 1.0})(P, C)
    with pytest.raises(RewardError, match="gives a score only"):
        rewards.Worst(thanks)(P, C)
    with pytest.raises(AlignkitError, match="rate must be a finite number above 0"):
        rewards.MaxMin(PARTS, rate=0)
    with pytest.raises(AlignkitError, match="start must be at least 0"):
        rewards.Lagrangian(PARTS, "short", "thanks", budget=0, start=-1)
    with pytest.raises(AlignkitError, match="at least one objective"):
        rewards.Weighted(PARTS, {})


# -- treatments --------------------------------------------------------------------------------------------------


def test_soup_of_one_is_itself_and_of_two_lies_between(tiny, world):
    other = make_policy(world.vocabulary(), seed=5, hidden=16, layers=1)
    other.tokenizer = tiny.tokenizer
    assert torch.equal(weights_of(optimize.soup([tiny])), weights_of(tiny))
    assert torch.equal(weights_of(optimize.soup([tiny, other], [1, 0])), weights_of(tiny))
    mixed = optimize.soup([tiny, other], [0.25, 0.75])
    assert torch.allclose(weights_of(mixed), 0.25 * weights_of(tiny) + 0.75 * weights_of(other))
    assert not torch.equal(weights_of(mixed), weights_of(tiny)), "and the ingredients stay as they are"


def test_soups_that_can_not_be_cooked_say_why(tiny, world, patient):
    for policies, weights, words_ in (([], None, "no policies"), ([tiny], [0.5], "summing to 1"),
                                      ([tiny, tiny], [1.0], "as many weights")):  # fmt: skip
        with pytest.raises(AlignkitError, match=words_):
            optimize.soup(policies, weights)
    wide = make_policy(world.vocabulary(), seed=0, hidden=32, layers=1)
    with pytest.raises(AlignkitError, match="different architectures"):
        optimize.soup([tiny, wide])


def logs(seed):
    generator = torch.Generator().manual_seed(seed)
    return -9 * torch.rand(7, generator=generator, dtype=torch.float64)


FOUR = [logs(s) for s in range(4)]
GAP = logs(4) + 4


def test_modpo_loss_without_other_objectives_is_dpo():
    assert torch.allclose(optimize.modpo_loss(*FOUR, 0.3, 1.0, torch.zeros(7)), optimize.dpo_loss(*FOUR, 0.3))


def test_modpo_loss_is_dpo_with_a_reference_that_the_others_have_tilted():
    chosen, rejected, ref_chosen, ref_rejected = FOUR
    tilted = optimize.dpo_loss(chosen, rejected, ref_chosen + GAP / 0.3, ref_rejected, 0.3 / 0.4)
    assert torch.allclose(optimize.modpo_loss(*FOUR, 0.3, 0.4, GAP), tilted)


@pytest.mark.parametrize("k", range(5))
def test_modpo_gradient_is_that_of_finite_differences(k):
    arguments = [*FOUR, GAP]

    def loss(x):
        *four, gap = arguments[:k] + [x] + arguments[k + 1 :]
        return optimize.modpo_loss(*four, 0.3, 0.6, gap)

    x = arguments[k].clone().requires_grad_()
    loss(x).sum().backward()
    assert torch.allclose(x.grad, finite_differences(loss, arguments[k]), atol=1e-7)


def test_modpos_optimum_is_that_of_the_weighted_sum_in_the_bandit():
    """Exact label probabilities for objective one, exact margins from two."""
    w, beta = 0.4, 0.5
    logits = REF.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-16)
    i, j = (x.flatten() for x in np.triu_indices(6, 1))
    p = torch.sigmoid(ONE[0, i] - ONE[0, j])
    gap = (1 - w) * (TWO[0, i] - TWO[0, j])

    def closure():
        optimizer.zero_grad()
        logp = torch.log_softmax(logits, -1)[0]
        one, other = (logp[i], logp[j], REF[0, i], REF[0, j]), (logp[j], logp[i], REF[0, j], REF[0, i])
        first, second = optimize.modpo_loss(*one, beta, w, gap), optimize.modpo_loss(*other, beta, w, -gap)
        loss = (p * first + (1 - p) * second).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = optimum(REF, w * ONE + (1 - w) * TWO, beta)
    assert torch.allclose(torch.log_softmax(logits, -1).detach(), expected, atol=1e-5)


def test_modpo_without_others_trains_like_dpo_and_follows_the_others_where_there_are(tiny, pairs):
    few = pairs.select(range(48))
    options = dict(epochs=1, batch_size=16, seed=1, beta=0.2, **QUIET)
    alone, plain = optimize.modpo(tiny, few, [], weight=1.0, **options), optimize.dpo(tiny, few, **options)
    assert torch.equal(weights_of(alone), weights_of(plain))
    steered = optimize.modpo(tiny, few, [(0.5, lambda p, c: -words(p, c))], weight=0.5, **options)
    assert not torch.equal(weights_of(steered), weights_of(alone))


def test_modpo_names_what_is_wrong(tiny, pairs):
    with pytest.raises(DataError, match="pairs need the columns"):
        optimize.modpo(tiny, Dataset.from_dict({"prompt": ["a"]}), [], weight=1.0, **QUIET)
    with pytest.raises(AlignkitError, match="weight must be a finite number above 0"):
        optimize.modpo(tiny, pairs.select(range(4)), [], weight=0.0, **QUIET)
    with pytest.raises(AlignkitError, match="beta must be a finite number above 0"):
        optimize.modpo(tiny, pairs.select(range(4)), [], weight=1.0, beta=0.0, **QUIET)


def test_gdpo_with_one_reward_is_grpo(tiny, world):
    options = dict(steps=2, prompts_per_step=3, group_size=4, max_new_tokens=8, seed=2, **QUIET)
    grpo = optimize.grpo(tiny, world.prompts(), PARTS["short"], beta=0.1, **options)
    one = optimize.gdpo(tiny, world.prompts(), {"short": PARTS["short"]}, beta=0.1, whiten=False, **options)
    assert torch.allclose(weights_of(grpo), weights_of(one), atol=1e-6)
    assert not torch.allclose(weights_of(grpo), weights_of(tiny), atol=1e-6)


# -- conflict ----------------------------------------------------------------------------------------------------


def test_the_reward_gradient_points_where_the_reward_grows(toy):
    def wish(prompts, completions):
        return np.array([float(c.startswith("a")) for c in completions])

    gradient = reward_gradient(toy, ["a b", "c"], wish, n=400, max_new_tokens=2)
    again = reward_gradient(toy, ["a b", "c"], wish, n=400, max_new_tokens=2, batch_size=100)
    assert torch.allclose(gradient, again, atol=1e-5), "no matter the batch size"
    moved = toy.copy()
    parameters = list(moved.model.parameters())
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(parameters) + gradient, parameters)

    def rate(policy):
        rollout = policy.rollout(["a b", "c"], 2000, seed=9, max_new_tokens=2)
        return wish(rollout.prompts, rollout.completions).mean()

    assert rate(moved) > 1.3 * rate(toy)


def test_cosines_by_hand_and_without_the_shrinkage_of_noise():
    assert optimize.cosine(torch.tensor([1.0, 0]), torch.tensor([-2.0, 0])) == -1
    generator = torch.Generator().manual_seed(0)
    a = torch.zeros(2000)
    a[0] = 30.0
    b = torch.zeros(2000)
    b[0], b[1] = -18.0, 24.0  # the cosine is -0.6
    noisy = [[g + torch.randn(2000, generator=generator) for _ in range(2)] for g in (a, b)]
    assert optimize.cosine(noisy[0][0], noisy[1][0]) > -0.4
    assert abs(optimize.unshrunk_cosine(*noisy) + 0.6) < 0.15
    assert np.isnan(optimize.unshrunk_cosine((a, -a), (b, b)))


def test_pcgrad_takes_away_what_conflicts_and_nothing_else():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    first, second = optimize.project_conflicts([a, b])
    assert torch.allclose(first, torch.tensor([0.5, 0.5])) and torch.allclose(second, torch.tensor([0.0, 1.0]))
    assert abs(first @ b) < 1e-6 and abs(second @ a) < 1e-6
    same = optimize.project_conflicts([a, torch.tensor([1.0, 2.0])])
    assert torch.equal(same[0], a)
    with pytest.raises(AlignkitError, match="at least 2"):
        optimize.project_conflicts([a])


# -- several tasks -----------------------------------------------------------------------------------------------


def test_the_patient_of_two_tasks_knows_the_words_of_both_and_answers_both():
    policy = load_policy("multitask")
    known = policy.tokenizer.get_vocab()
    for name in MIXED:
        part = worlds.load(name)
        assert {*part.vocabulary()} <= {*known}
        rollout = policy.rollout(part.prompts("seen")[:12], 4, seed=1)
        alone = load_policy(name).rollout(part.prompts("seen")[:12], 4, seed=1)
        mine, theirs = (part.gold(r.prompts, r.completions).mean() for r in (rollout, alone))
        assert rollout.ended.float().mean() > 0.9 and mine > theirs - 0.4


def test_the_patient_of_two_tasks_is_built_from_documents_of_both(monkeypatch):
    monkeypatch.setattr("alignkit.lab.build.DOCUMENTS", 40)
    one, again, other = (build_patient("multitask", seed=s, steps=1) for s in (3, 3, 4))
    assert one.model.dtype == torch.float16
    assert torch.equal(weights_of(one), weights_of(again)) and not torch.equal(weights_of(one), weights_of(other))
