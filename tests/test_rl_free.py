"""RL-free optimization: the losses against hand, closed form and finite differences; the methods; interruptions."""

import math
import warnings

import numpy as np
import pytest
import torch
from conftest import finite_differences, mean_gold, weights_of
from datasets import Dataset
from torch.nn.functional import logsigmoid

from alignkit import feedback, optimize, rewards
from alignkit.errors import AlignkitError, DataError
from alignkit.lab.build import make_policy
from alignkit.optimize import losses, preference
from alignkit.optimize.rounds import rejection_sample, win_rates
from alignkit.training import default_rate, language_watch, tokens_at_once
from alignkit.worlds.bandit import BanditWorld, optimum

QUIET = {"progress": False}
N = 7
LENGTHS = torch.tensor([5.0, 9, 3, 3, 12, 7, 1]), torch.tensor([4.0, 2, 8, 3, 6, 11, 2])


def logs(*shape, seed=0, low=-9.0):
    """Log-probabilities, away from 0, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return low * (0.05 + 0.9 * torch.rand(*shape, generator=generator, dtype=torch.float64))


FOUR = [logs(N, seed=s) for s in range(4)]  # chosen, rejected, ref_chosen, ref_rejected
UP = torch.tensor([True, False, True, True, False, False, True])
RANKED = logs(5, 4, seed=9)

#: name: (loss, its differentiable arguments)
LOSSES = {
    "dpo": (lambda *x: optimize.dpo_loss(*x, 0.3), FOUR),
    "cdpo": (lambda *x: optimize.dpo_loss(*x, 0.3, 0.2), FOUR),
    "robust dpo": (lambda *x: optimize.robust_dpo_loss(*x, 0.3, 0.2), FOUR),
    "ipo": (lambda *x: optimize.ipo_loss(*x, 0.3), FOUR),
    "hinge": (lambda *x: optimize.hinge_loss(*x, 0.3), FOUR),
    "r-dpo": (lambda *x: losses.length_regularized_dpo_loss(*x, 0.3, *LENGTHS, 0.05), FOUR),
    "apo zero": (lambda *x: losses.apo_zero_loss(*x, 0.3), FOUR),
    "apo down": (lambda *x: losses.apo_down_loss(*x, 0.3), FOUR),
    "cpo": (lambda *x: optimize.cpo_loss(*x, 0.3), FOUR[:2]),
    "simpo": (lambda *x: optimize.simpo_loss(*x, 2.0, 1.0), FOUR[:2]),
    "orpo": (optimize.orpo_loss, FOUR[:2]),
    "nll": (lambda x: optimize.nll_loss(x, LENGTHS[0]), FOUR[:1]),
    "sppo": (lambda x: losses.sppo_loss(x, torch.linspace(0, 1, N).double(), 3.0), FOUR[:1]),
    "kto": (lambda x: optimize.kto_loss(x, UP, 0.7, 0.4, (1.0, 2.0)), FOUR[:1]),
    "rrhf": (losses.rrhf_loss, [RANKED]),
    "slic hf": (lambda *x: losses.slic_hf_loss(*x, 2.0), FOUR[:2]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_each_loss_is_that_of_finite_differences(name):
    loss, arguments = LOSSES[name]
    for k, x in enumerate(arguments):
        free = x.clone().requires_grad_()
        loss(*arguments[:k], free, *arguments[k + 1 :]).sum().backward()
        slope = finite_differences(lambda v: loss(*arguments[:k], v, *arguments[k + 1 :]), x)  # noqa: B023
        assert torch.allclose(free.grad, slope, atol=1e-7), name


@pytest.mark.parametrize("name", LOSSES)
def test_each_row_has_a_loss_of_its_own_that_does_not_depend_on_the_others(name):
    loss, arguments = LOSSES[name]
    whole = loss(*arguments)
    assert whole.shape == arguments[0].shape[:1]
    if name not in ("r-dpo", "nll", "sppo", "kto"):  # those have row arguments besides
        assert torch.allclose(whole[2:4], loss(*(x[2:4] for x in arguments)))


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust dpo", "ipo", "hinge", "r-dpo"])
def test_losses_of_the_margin_see_only_differences_within_a_prompt(name):
    loss, (c, r, rc, rr) = LOSSES[name]
    shift = torch.linspace(-3, 3, N).double()
    assert torch.allclose(loss(c, r, rc, rr), loss(c + shift, r + shift, rc, rr))
    assert torch.allclose(loss(c, r, rc, rr), loss(c + shift, r, rc + shift, rr))
    assert not torch.allclose(loss(c, r, rc, rr), loss(c + shift, r, rc, rr))


@pytest.mark.parametrize("name", ["apo zero", "apo down"])
def test_anchored_losses_see_more_than_the_margin(name):
    loss, (c, r, rc, rr) = LOSSES[name]
    assert not torch.allclose(loss(c, r, rc, rr), loss(c + 1, r + 1, rc, rr))


def test_swapping_the_sides_turns_the_margin_around():
    c, r, rc, rr = FOUR
    m = (c - rc) - (r - rr)
    assert torch.allclose(optimize.dpo_loss(c, r, rc, rr, 0.3) - optimize.dpo_loss(r, c, rr, rc, 0.3), -0.3 * m)
    assert torch.allclose(optimize.ipo_loss(c, r, rc, rr, 0.3) - optimize.ipo_loss(r, c, rr, rc, 0.3), -2 * m / 0.3)
    half = optimize.dpo_loss(c, r, rc, rr, 0.3, smoothing=0.5)
    assert torch.allclose(half, optimize.dpo_loss(r, c, rr, rc, 0.3, smoothing=0.5))


@pytest.mark.parametrize("name", ["dpo", "hinge"])
def test_beta_and_margin_only_count_as_their_product(name):
    loss = {"dpo": optimize.dpo_loss, "hinge": optimize.hinge_loss}[name]
    assert torch.allclose(loss(*FOUR, 0.3), loss(*(2 * x for x in FOUR), 0.15))
    twice = optimize.ipo_loss(*(2 * x for x in FOUR), 0.15)
    assert torch.allclose(twice, 4 * optimize.ipo_loss(*FOUR, 0.3))


def test_length_regularization_asks_less_of_what_length_explains():
    c, r, rc, rr = (x[:1] for x in FOUR)
    long, short = torch.tensor([20.0]), torch.tensor([5.0])

    def push(*lengths):
        free = c.clone().requires_grad_()
        losses.length_regularized_dpo_loss(free, r, rc, rr, 0.3, *lengths, alpha=0.05).sum().backward()
        return -free.grad.item()

    assert push(long, short) < push(short, short) < push(short, long)


def test_length_regularized_dpo_has_the_optimum_of_the_reward_less_alpha_times_length():
    world = BanditWorld(n_prompts=2, seed=1)
    reward, ref, length = torch.from_numpy(world.table), world.reference(1), torch.arange(1.0, 7).double()
    i, j = torch.triu_indices(6, 6, offset=1)
    p = torch.sigmoid(reward[:, i] - reward[:, j])

    def loss(q):
        a, b = (q[:, i], ref[:, i], length[i]), (q[:, j], ref[:, j], length[j])
        def side(x, y):
            return losses.length_regularized_dpo_loss(x[0], y[0], x[1], y[1], 0.5, x[2], y[2], alpha=0.1)
        return (p * side(a, b) + (1 - p) * side(b, a)).sum()

    assert torch.allclose(minimum(loss, ref), optimum(ref, reward - 0.1 * length, 0.5), atol=1e-5)


# -- where they stop -------------------------------------------------------------------------------------------------


def minimum(loss, start, steps=2000):
    """log pi of the tabular policy that minimizes loss(log pi)."""
    theta = start.clone().requires_grad_()
    search = torch.optim.LBFGS([theta], max_iter=steps, max_eval=4 * steps, tolerance_grad=1e-12, tolerance_change=0,
                               history_size=50, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        search.zero_grad()
        value = loss(torch.log_softmax(theta, -1))
        value.backward()
        return value

    search.step(closure)
    return torch.log_softmax(theta.detach(), -1)


@pytest.fixture(scope="module")
def bandit():
    world = BanditWorld(n_prompts=3, n_outcomes=5, seed=2)
    return torch.from_numpy(world.table), world.reference(2)


def all_pairs(q, ref, loss, p):
    """Expected loss over every ordered pair of different outcomes, p[:, i, j] = P(i beats j)."""
    k = q.shape[1]
    i, j = (~torch.eye(k, dtype=torch.bool)).nonzero().T
    return (p[:, i, j] * loss(q[:, i], q[:, j], ref[:, i], ref[:, j])).sum()


def test_dpo_finds_the_optimum_of_the_reward_behind_the_preferences(bandit):
    reward, ref = bandit
    p = torch.sigmoid(reward[:, :, None] - reward[:, None, :])
    found = minimum(lambda q: all_pairs(q, ref, lambda *x: optimize.dpo_loss(*x, 0.4), p), ref)
    assert torch.allclose(found, optimum(ref, reward, 0.4), atol=1e-5)


def test_ipo_finds_the_optimum_of_the_win_rate(bandit):
    reward, ref = bandit
    p = torch.sigmoid(3 * (reward[:, :, None] - reward[:, None, :]))
    found = minimum(lambda q: all_pairs(q, ref, lambda *x: optimize.ipo_loss(*x, 0.2), p), ref)
    assert torch.allclose(found, optimum(ref, p.mean(2), 0.2), atol=1e-5)


def test_robust_dpo_finds_on_flipped_labels_what_dpo_finds_on_clean_ones(bandit):
    reward, ref = bandit
    clean = torch.sigmoid(reward[:, :, None] - reward[:, None, :])
    flipped = 0.7 * clean + 0.3 * (1 - clean)
    found = minimum(lambda q: all_pairs(q, ref, lambda *x: optimize.robust_dpo_loss(*x, 0.4, 0.3), flipped), ref)
    assert torch.allclose(found, optimum(ref, reward, 0.4), atol=1e-4)
    plain = minimum(lambda q: all_pairs(q, ref, lambda *x: optimize.dpo_loss(*x, 0.4), flipped), ref)
    assert (plain - ref).abs().max() < (found - ref).abs().max()  # plain DPO learns too small a gap


def test_with_certain_preferences_dpo_goes_on_where_ipo_and_cdpo_stop():
    ref, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def margins(loss, steps=1500):
        m, path = torch.zeros(1, dtype=torch.float64, requires_grad=True), []
        search = torch.optim.SGD([m], lr=0.4)
        for _ in range(steps):
            search.zero_grad()
            loss(m * one, ref, ref, ref).sum().backward()
            search.step()
            path.append(m.item())
        return path

    for beta in (0.5, 2.0):
        free = margins(lambda *x: optimize.dpo_loss(*x, beta))  # noqa: B023
        assert free[-1] > free[len(free) // 2] + 0.1 > free[100] + 0.2
        assert margins(lambda *x: optimize.ipo_loss(*x, beta))[-1] == pytest.approx(1 / (2 * beta))  # noqa: B023
        stop = margins(lambda *x: optimize.dpo_loss(*x, beta, 0.1))[-1]  # noqa: B023
        assert stop == pytest.approx(math.log(0.9 / 0.1) / beta, rel=1e-4)
        assert free[-1] > stop / 2


def test_robust_dpo_is_unbiased_under_flips():
    c, r, rc, rr = FOUR
    for e in (0.0, 0.1, 0.45):
        right, wrong = (optimize.robust_dpo_loss(*x, 0.3, e) for x in ((c, r, rc, rr), (r, c, rr, rc)))
        assert torch.allclose((1 - e) * right + e * wrong, optimize.dpo_loss(c, r, rc, rr, 0.3))


def test_kto_goes_with_the_majority_however_small():
    r = torch.linspace(-8, 8, 33).double().requires_grad_()
    for share in (0.2, 0.49, 0.51, 0.9):
        r.grad = None
        up, down = (optimize.kto_loss(r, torch.full(r.shape, d), 0.0, 0.3) for d in (True, False))
        (share * up + (1 - share) * down).sum().backward()
        assert torch.all(torch.sign(-r.grad) == (1 if share > 0.5 else -1))  # no minimum between: it never stops


def test_kto_learns_most_at_its_reference_point_and_nothing_far_from_it():
    r = torch.tensor([-30.0, 0, 2, 4, 34]).double().requires_grad_()
    optimize.kto_loss(r, torch.ones(5, dtype=torch.bool), 2.0, 1.0).sum().backward()
    slope = -r.grad
    assert slope.argmax() == 2 and slope[1].item() == pytest.approx(slope[3].item())
    assert slope[0] < 1e-9 and slope[4] < 1e-9  # a desirable answer that is hopelessly unlikely is given up
    both = optimize.kto_loss(r, torch.tensor([True, True, False, False, False]), 2.0, 1.0, (3.0, 0.0))
    assert torch.all(both[2:] == 0) and torch.all(both[:2] > 1)


def test_sppo_stays_where_nothing_beats_the_policy():
    beats = torch.tensor([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]).double()  # rock, paper, scissors
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    theta = uniform.clone().requires_grad_()
    q = torch.log_softmax(theta, -1)
    loss = (uniform.exp() * losses.sppo_loss(q - uniform, beats @ uniform.exp(), 3.0)).sum()
    loss.backward()
    assert loss.item() < 1e-28 and theta.grad.abs().max() < 1e-14


def test_sppo_takes_a_step_of_multiplicative_weights(bandit):
    reward, ref = bandit
    p = torch.sigmoid(reward[:, :, None] - reward[:, None, :])
    win = (p * ref.exp()[:, None, :]).sum(2)

    def error(eta):
        found = minimum(lambda q: (ref.exp() * losses.sppo_loss(q - ref, win, eta)).sum(), ref)
        return (found - torch.log_softmax(ref + eta * win, -1)).abs().max().item()

    assert error(0.05) < 1e-3 < 0.05 * 0.5 * win.std().item()
    assert error(0.05) < 0.3 * error(0.1)  # second order in eta: log Z is taken to be eta / 2


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_values_by_hand():
    one = torch.ones(1, dtype=torch.float64)
    p, q = 0.5, 0.2
    odds = math.log(p / (1 - p) / (q / (1 - q)))
    assert optimize.orpo_loss(math.log(p) * one, math.log(q) * one).item() == pytest.approx(math.log1p(math.exp(-odds)))
    assert optimize.simpo_loss(-1 * one, -2 * one, 2.0, 1.0).item() == pytest.approx(math.log1p(math.exp(-1)))
    assert optimize.ipo_loss(-1 * one, -2 * one, -1 * one, -1 * one, 0.5).item() == pytest.approx(0.0)
    assert optimize.hinge_loss(-1 * one, -2 * one, -1 * one, -1 * one, 0.2).item() == pytest.approx(0.8)
    hard = [losses.sppo_loss(a * one, w * one, 1 / 0.1).item() for a, w in ((2.0, 1.0), (-1.0, 0.0))]
    assert hard == pytest.approx([(2 - 0.5 / 0.1) ** 2, (-1 + 0.5 / 0.1) ** 2])  # sppo_hard of TRL at beta = 0.1


def test_orpo_keeps_its_digits_at_both_ends():
    means = torch.tensor([-1e-6, -40.0, -1e-12])
    assert torch.isfinite(optimize.orpo_loss(means, means.flip(0))).all()


def test_rankings_of_two_are_pairs():
    means = logs(6, 2, seed=3)
    better, worse = means.T
    assert torch.allclose(rewards.plackett_luce_loss(1.5 * means), -logsigmoid(1.5 * (better - worse)))
    assert torch.allclose(losses.rrhf_loss(means), torch.relu(worse - better))
    in_order = means.sort(1, descending=True).values
    assert torch.all(losses.rrhf_loss(in_order) == 0)  # nothing to correct: only the likelihood goes on


def test_rejection_sampling_draws_the_optimum():
    reward, ref, rng = np.array([0.0, 1.0, 2.0]), np.array([0.6, 0.3, 0.1]), np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(300):
        drawn = rng.choice(3, size=400, p=ref)
        counts += np.bincount(drawn[rejection_sample(reward[drawn], 8, 0.7, rng)], minlength=3)
    wanted = ref * np.exp(reward / 0.7)
    assert np.allclose(counts / counts.sum(), wanted / wanted.sum(), atol=0.03)
    assert sorted(rejection_sample(reward, 3, 1e-3, rng)) == [0, 1, 2]  # all, if all are wanted


def test_win_rates_count_each_two_once_and_equals_as_half():
    def longer(prompts, a, b):
        return np.array([len(x) > len(y) for x, y in zip(a, b, strict=True)])

    rates = win_rates(longer, ["p"] * 3 + ["q"] * 3, ["a", "aa", "aaa", "b", "b", "bb"], 3, {})
    assert np.allclose(rates, [[0.5 / 3, 1.5 / 3, 2.5 / 3], [1 / 3, 1 / 3, 2.5 / 3]])


# -- the methods -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def before(world, patient):
    return mean_gold(world, patient, "feedback", n=3)


def thumbs_of(pairs):
    n = len(pairs)
    return Dataset.from_dict({"prompt": pairs["prompt"][:] * 2, "completion": pairs["chosen"][:] + pairs["rejected"][:],
                              "label": [True] * n + [False] * n})  # fmt: skip


def treat(name, world, patient, pairs):
    some = {"learning_rate": 1e-3, **QUIET}
    asked, gold = world.prompts("feedback"), rewards.GoldReward(world)
    if name == "kto":
        return optimize.kto(patient, thumbs_of(pairs.select(range(160))), epochs=1.5, **some)
    if name in ("rrhf", "pro"):
        sharp = feedback.Annotator(temperature=1e-3)
        ranked = feedback.rank(world, feedback.draw_groups(world, patient, 100, group_size=4, seed=1), sharp)
        return getattr(optimize, name)(patient, ranked, epochs=1.5, **some)
    if name == "raft":
        return optimize.raft(patient, asked, gold, n=6, rounds=2, prompts_per_round=60, epochs=3, **some)
    if name == "rso":
        return optimize.rso(patient, asked, gold, n=8, keep=6, prompts_per_round=60, epochs=2, **some)
    if name == "iterative dpo":
        return optimize.iterative_dpo(patient, asked, gold, rounds=2, prompts_per_round=120, epochs=2, **some)
    if name == "online dpo":
        return optimize.online_dpo(patient, asked, gold, steps=12, **some)
    if name == "spin":
        shown = Dataset.from_dict({"prompt": asked, "completion": [world.ideal(p) for p in asked]})
        return optimize.spin(patient, shown, rounds=2, prompts_per_round=100, epochs=2, **some)
    return optimize.sppo(patient, asked, gold, group_size=4, rounds=2, prompts_per_round=60, epochs=2, **some)


METHODS = ["kto", "rrhf", "pro", "raft", "rso", "iterative dpo", "online dpo", "spin", "sppo"]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_raises_gold_and_leaves_the_patient_alone(name, world, patient, pairs, before):
    untouched = weights_of(patient)
    treated = treat(name, world, patient, pairs)
    assert mean_gold(world, treated, "feedback", n=3) > before + 0.1
    assert torch.equal(weights_of(patient), untouched)
    assert treated.name == f"{patient.name} + {name}"
    assert {"rows_read", "updates", "seconds"} <= set(treated.spent)
    assert len(treated.history) == treated.spent["updates"]
    if name not in ("kto", "rrhf", "pro"):
        assert treated.spent["completions_sampled"] > 0


def test_the_methods_on_pairs_are_these():
    assert set(optimize.PAIR_METHODS) == {
        "dpo", "robust_dpo", "ipo", "hinge", "length_regularized_dpo", "apo_zero", "apo_down", "slic_hf", "simpo",
        "cpo", "orpo",
    }  # fmt: skip


def test_a_new_loss_is_one_function_and_one_row(tiny, pairs, monkeypatch):
    """With a setting, the reference, lengths, and a column of the user's own."""
    monkeypatch.setattr(preference, "PAIR_METHODS", dict(optimize.PAIR_METHODS))

    def careful_loss(chosen, rejected, ref_chosen, ref_rejected, chosen_length, surety, beta):
        return -surety * logsigmoid(beta * losses.margin_of(chosen, rejected, ref_chosen, ref_rejected))

    careful = optimize.on_pairs(careful_loss, beta=0.1)

    assert preference.PAIR_METHODS["careful"] is careful
    few, settings = pairs.select(range(16)), {"batch_size": 8, **QUIET}
    sure, half = ([c] * 16 for c in (1.0, 0.5))
    as_dpo = careful(tiny, few.add_column("surety", sure), beta=0.3, **settings)
    assert torch.equal(weights_of(as_dpo), weights_of(optimize.dpo(tiny, few, beta=0.3, **settings)))
    less = careful(tiny, few.add_column("surety", half), **settings).history["loss"]
    assert less[0] == pytest.approx(0.5 * math.log(2), abs=1e-4)
    with pytest.raises(DataError, match="careful: its loss asks for 'surety'"):
        careful(tiny, few, **settings)
    with pytest.raises(DataError, match="row 15: 'surety'"):
        careful(tiny, few.add_column("surety", [1.0] * 15 + [None]), **settings)


def test_parts_of_a_minibatch_add_up_to_the_whole(tiny, pairs):
    """Every kind of loss: those whose rows don't know of each other, and those that share tokens or a KL."""
    few = pairs.select(range(24))
    ranked = Dataset.from_dict({"prompt": few["prompt"][:], "ranked": [list(both) for both in
                                zip(few["chosen"], few["rejected"], strict=True)]})  # fmt: skip
    runs = {"sft": (optimize.sft, thumbs_of(few)), "dpo": (optimize.dpo, few), "cpo": (optimize.cpo, few),
            "orpo": (optimize.orpo, few), "kto": (optimize.kto, thumbs_of(few)), "rrhf": (optimize.rrhf, ranked)}
    for name, (method, data) in runs.items():
        settings = {"batch_size": 12, "epochs": 1, **QUIET}
        whole, parts = method(tiny, data, **settings), method(tiny, data, micro_batch_tokens=60, **settings)
        for column in whole.history:
            np.testing.assert_allclose(parts.history[column], whole.history[column], rtol=1e-3, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_logits_are_never_made_for_a_whole_minibatch(tiny, pairs):
    """Neither by the reference's pass nor in training; and what is learned is the same to rounding."""
    few, budget, made = pairs.select(range(96)), 2**16, []

    def run(method, data, bounded):
        policy = tiny.copy()
        if bounded:
            policy.logit_budget = budget
            policy.model.lm_head.register_forward_hook(lambda _module, _args, out: made.append(out.numel()))
        return method(policy, data, epochs=1, **QUIET)

    for method, data in ((optimize.dpo, few), (optimize.kto, thumbs_of(few)), (optimize.sft, thumbs_of(few))):
        made.clear()
        whole, bounded = (run(method, data, each) for each in (False, True))
        assert made and max(made) <= budget
        np.testing.assert_allclose(bounded.history["loss"], whole.history["loss"], atol=1e-5)


def test_a_callback_sees_every_step_and_may_end_training(tiny, pairs):
    seen = []

    def watch(step, policy, row):
        seen.append((step, policy.name, row["loss"]))
        return step == 2

    treated = optimize.dpo(tiny, pairs.select(range(64)), batch_size=8, callback=watch, **QUIET)
    assert [step for step, *_ in seen] == [0, 1, 2] and treated.history["loss"].tolist() == [loss for *_, loss in seen]
    assert treated.spent["updates"] == 3 and treated.spent["rows_read"] == 24


def test_a_policy_that_loses_its_language_is_not_trained_on(patient, pairs):
    watch = language_watch(patient, pairs["prompt"][:16])
    with pytest.warns(UserWarning, match="has lost its language: a token of its prompts costs"):
        ruined = optimize.sft(patient, thumbs_of(pairs), learning_rate=0.3, callback=watch, **QUIET)
    assert len(ruined.history) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(optimize.sft(patient, thumbs_of(pairs), callback=watch, **QUIET).history) == 20


def test_learning_rates_follow_what_is_trained(tiny):
    assert [default_rate(tiny.model, kind) for kind in ("sft", "preference", "reward")] == [1e-3, 3e-4, 1e-3]
    large = torch.nn.Sequential(torch.nn.Linear(5000, 3000, device="meta"), torch.nn.Linear(10, 10, device="meta"))
    assert [default_rate(large, kind) for kind in ("sft", "preference", "reward")] == [2e-5, 1e-6, 1e-5]
    large[0].requires_grad_(False)
    assert default_rate(large, "preference") == pytest.approx(1e-5)
    assert tokens_at_once(tiny.model) > 100_000  # small models are read whole


def test_messages_and_prompts_that_both_sides_begin_with(pairs):
    """TRL's conversational columns in every method, and its implicit prompts."""
    policy = make_policy([*"abcdefg", "<user>", "<assistant>", "<end>"], seed=3, hidden=16, layers=1)
    policy.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    ask, say = ([{"role": role, "content": text} for text in "abcd"] for role in ("user", "assistant"))
    rows = {"prompt": [[m] for m in ask], "chosen": [[m] for m in say], "rejected": [[m] for m in say[::-1]]}
    named = Dataset.from_dict({**rows, "source": list("wxyz")})
    implicit = Dataset.from_dict({side: [p + s for p, s in zip(rows["prompt"], rows[side], strict=True)]
                                  for side in ("chosen", "rejected")})  # fmt: skip
    once = {"batch_size": 4, "epochs": 1, "learning_rate": 1e-3, **QUIET}
    for method in optimize.PAIR_METHODS.values():
        first, second = (method(policy, data, **once) for data in (named, implicit))
        assert torch.isfinite(weights_of(first)).all() and torch.equal(weights_of(first), weights_of(second))
    singles = Dataset.from_dict({"prompt": rows["prompt"], "completion": rows["chosen"], "label": [True, False] * 2})
    ranked = Dataset.from_dict({"prompt": rows["prompt"], "ranked": [list(both) for both in
                                zip(rows["chosen"], rows["rejected"], strict=True)]})  # fmt: skip
    for method, data in ((optimize.sft, singles), (optimize.kto, singles), (optimize.rrhf, ranked)):
        assert len(method(policy, data, **once).history) == 1


@pytest.mark.parametrize("wrong", [[{"prompt": "a", "chosen": "b", "rejected": "c"}], "tea", {"prompt": ["a"]}])
def test_what_is_no_data_set_is_named(tiny, wrong):
    for method in (optimize.dpo, optimize.sft, optimize.kto, optimize.rrhf):
        with pytest.raises(DataError, match=f"must be a datasets.Dataset, not {type(wrong).__name__}"):
            method(tiny, wrong, **QUIET)


ON_PAIRS = [name for name in optimize.PAIR_METHODS if name != "dpo"]


@pytest.mark.parametrize("name", ON_PAIRS)
def test_each_method_on_pairs_learns_to_prefer_the_chosen_side(name, patient, pairs):
    untouched = weights_of(patient)
    treated = getattr(optimize, name)(patient, pairs, epochs=3, learning_rate=1e-3, progress=False)
    right = treated.history["accuracy"]
    assert right[-6:].mean() > 0.65 and treated.history["loss"][-6:].mean() < treated.history["loss"][:3].mean()
    assert torch.equal(weights_of(patient), untouched)


def test_an_annotator_answers_the_same_when_asked_again(world):
    asked = world.prompts("test")[:20]
    a, b = [world.ideal(p) for p in asked], ["you should know this , fool ."] * 20
    person = feedback.Annotator(temperature=3.0)
    say = optimize.as_labeler(world, person, seed=1)
    assert np.array_equal(say(asked, a, b), say(asked, a, b)) and say(asked, a, b).dtype == bool
    assert 0.5 < say(asked, a, b).mean() < 1


# -- interruptions ---------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stops_after(function, calls):
    left = [calls]

    def wrapped(*args, **rest):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return function(*args, **rest)

    wrapped.__name__ = getattr(function, "__name__", "wrapped")
    return wrapped


@pytest.mark.parametrize("name", ["dpo", "kto", "rrhf", "sft"])
def test_training_that_was_interrupted_ends_bit_for_bit_the_same(name, tiny, pairs, tmp_path, monkeypatch):
    few = pairs.select(range(24))
    ranked = [list(both) for both in zip(few["chosen"], few["rejected"], strict=True)]
    data = {"kto": thumbs_of(few), "sft": thumbs_of(few), "dpo": few,
            "rrhf": Dataset.from_dict({"prompt": few["prompt"][:], "ranked": ranked})}[name]  # fmt: skip
    method, settings = getattr(optimize, name), {"epochs": 4, "batch_size": 4, "seed": 3, **QUIET}
    whole = method(tiny, data, **settings)
    file = tmp_path / "run.pt"
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", stops_after(step, 13))
    with pytest.raises(Stopped):
        method(tiny, data, checkpoint=file, **settings)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    resumed = method(tiny, data, checkpoint=file, **settings)
    assert torch.equal(weights_of(resumed), weights_of(whole))
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()
    with pytest.raises(AlignkitError, match="another run: learning_rate"):
        method(tiny, data, checkpoint=file, **{**settings, "learning_rate": 1e-2})
    with pytest.raises(AlignkitError, match="another run"):
        method(tiny, data.select(range(20)), checkpoint=file, **settings)
    if name in ("dpo", "kto"):
        with pytest.raises(AlignkitError, match="another run: gradient"):
            method(tiny, data, checkpoint=file, **{**settings, "beta": 0.3})


def first_is_longer(prompts, a, b):
    return np.array([len(x) >= len(y) for x, y in zip(a, b, strict=True)])


def test_online_training_and_rounds_that_were_interrupted_go_on_the_same(tiny, world, tmp_path):
    asked = world.prompts("feedback")
    runs = {
        "online": lambda label, **o: optimize.online_dpo(tiny, asked, label, steps=14, prompts_per_step=4, **QUIET,
                                                         **o),
        "rounds": lambda label, **o: optimize.iterative_dpo(tiny, asked, label, rounds=3, prompts_per_round=20,
                                                            batch_size=4, **QUIET, **o),
    }  # fmt: skip
    for name, run in runs.items():
        whole = run(first_is_longer)
        with pytest.raises(Stopped):
            run(stops_after(first_is_longer, 12 if name == "online" else 2), checkpoint=tmp_path / name)
        asked_again = stops_after(first_is_longer, 5 if name == "online" else 3)  # online: step 0, 10 to 13
        assert torch.equal(weights_of(run(asked_again, checkpoint=tmp_path / name)), weights_of(whole))
    with pytest.raises(AlignkitError, match="another run"):
        runs["rounds"](first_is_longer, checkpoint=tmp_path / "rounds", beta=0.4)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_pairs_with_equal_sides_are_counted_and_teach_margin_losses_nothing(tiny, pairs):
    prompts, texts = pairs["prompt"][:8], pairs["chosen"][:8]
    same = Dataset.from_dict({"prompt": prompts, "chosen": texts, "rejected": texts})
    for method in (optimize.dpo, optimize.hinge, optimize.robust_dpo):
        with pytest.warns(UserWarning, match="8 of 8 pairs have equal sides"):
            treated = method(tiny, same, batch_size=4, **QUIET)
        history = treated.history  # not the weights: Adam makes a small step even of rounding errors
        assert history["margin"].abs().max() < 1e-4 and np.ptp(history["loss"]) < 1e-4


def test_empty_completions_are_answers_too(tiny, pairs):
    silent = Dataset.from_dict({"prompt": pairs["prompt"][:8], "chosen": [""] * 4 + pairs["chosen"][:4],
                                "rejected": pairs["rejected"][:4] + [""] * 4})  # fmt: skip
    for method in (optimize.dpo, optimize.simpo, optimize.orpo):
        assert torch.isfinite(weights_of(method(tiny, silent, batch_size=4, **QUIET))).all()
    assert torch.isfinite(weights_of(optimize.kto(tiny, thumbs_of(silent), batch_size=4, **QUIET))).all()


def test_bad_settings_are_named(tiny, toy, pairs, world):
    few, asked = pairs.select(range(4)), world.prompts("test")
    thumbs = thumbs_of(few)
    for method, data in ((optimize.dpo, few), (optimize.ipo, few), (optimize.hinge, few), (optimize.cpo, few),
                         (optimize.kto, thumbs)):  # fmt: skip
        with pytest.raises(AlignkitError, match="beta must be a finite number above 0, not 0"):
            method(tiny, data, beta=0, **QUIET)
    for method, data in ((optimize.dpo, few), (optimize.kto, thumbs)):
        with pytest.raises(AlignkitError, match="different vocabularies"):
            method(tiny, data, reference=toy, **QUIET)
    with pytest.raises(AlignkitError, match="different vocabularies"):
        optimize.online_dpo(tiny, asked, first_is_longer, reference=toy, **QUIET)
    with pytest.raises(AlignkitError, match="weights must be two numbers"):
        optimize.kto(tiny, thumbs, weights=(0, 0), **QUIET)
    with pytest.raises(AlignkitError, match="a reward must be callable"):
        optimize.raft(tiny, asked, None, **QUIET)
    with pytest.raises(AlignkitError, match="a reward must be callable"):
        optimize.rso(tiny, asked, None, **QUIET)
    with pytest.raises(AlignkitError, match="a labeler must be a Reward or a function"):
        optimize.iterative_dpo(tiny, asked, None, **QUIET)
    with pytest.raises(AlignkitError, match="as_labeler\\(world, annotator\\)"):
        optimize.sppo(tiny, asked, feedback.Annotator(), **QUIET)
    with pytest.raises(AlignkitError, match="a probability, for each of"):
        optimize.online_dpo(tiny, asked, lambda p, a, b: np.full(len(a), 7.0), steps=1, **QUIET)
    with pytest.raises(AlignkitError, match="group_size must be at least 2"):
        optimize.sppo(tiny, asked, first_is_longer, group_size=1, **QUIET)
    with pytest.raises(AlignkitError, match="n must be at least 8"):
        optimize.rso(tiny, asked, rewards.GoldReward(world), n=4, **QUIET)
    with pytest.raises(AlignkitError, match="the number of prompts must be at least 1"):
        optimize.iterative_dpo(tiny, [], first_is_longer, **QUIET)
    with pytest.raises(AlignkitError, match="flip must be in"):
        optimize.robust_dpo(tiny, few, flip=0.5, **QUIET)


def test_bad_rows_are_named(tiny, pairs):
    few = pairs.select(range(4))
    numbers = thumbs_of(few).remove_columns("label").add_column("label", [1, 0] * 4)
    with pytest.raises(DataError, match="row 0: 'label' is 1; it must be true or false"):
        optimize.kto(tiny, numbers, **QUIET)
    with pytest.raises(DataError, match="missing \\['label'\\]"):
        optimize.kto(tiny, thumbs_of(few).remove_columns("label"), **QUIET)
    with pytest.warns(UserWarning, match="all 4 rows are desirable"):
        optimize.kto(tiny, thumbs_of(few).select(range(4)), batch_size=4, **QUIET)
    with pytest.raises(DataError, match="at least two rows"), pytest.warns(UserWarning):
        optimize.kto(tiny, thumbs_of(few).select([0]), **QUIET)
    one = Dataset.from_dict({"prompt": few["prompt"][:2], "ranked": [["a .", "b ."], ["a ."]]})
    for method in (optimize.rrhf, optimize.pro):
        with pytest.raises(DataError, match="row 1: 'ranked' must list at least two texts"):
            method(tiny, one, **QUIET)
    with pytest.raises(AlignkitError, match="no pair has two different sides|all pairs of samples are equal"):
        optimize.pairs_of(["p"], ["same"], ["same"], first_is_longer)
    with pytest.raises(AlignkitError, match="nothing to learn"):
        optimize.pairs_of(["p"], ["a"], ["b"], lambda p, a, b: np.array([0.5]))


def test_log_probabilities_that_are_not_finite_are_reported(tiny, pairs):
    broken = tiny.copy("broken")
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(AlignkitError, match="not finite"):
        optimize.dpo(tiny, pairs.select(range(4)), reference=broken, **QUIET)
    with pytest.raises(AlignkitError, match="not finite"):
        optimize.kto(broken, thumbs_of(pairs.select(range(4))), **QUIET)


def test_every_loss_of_the_module_is_proved_here():
    # in tests of their own
    elsewhere = {"policy_loss", "regression_loss", "modpo_loss", "mdpo_loss", "conditional_loss", "anchor_loss"}
    public = {name for name in dir(losses) if name.endswith("_loss")} - elsewhere
    assert public == {f"{name.replace('r-dpo', 'length_regularized_dpo').replace(' ', '_')}_loss" for name in LOSSES
                      if name != "cdpo"}  # fmt: skip
