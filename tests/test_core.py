"""Identities proved by enumeration in double precision, and the measurements that rest on them."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from alignkit import evaluation, plots
from alignkit.errors import AlignkitError
from alignkit.evaluation import core
from alignkit.optimize import dpo_loss, group_normalized, kl_estimate, leave_one_out
from alignkit.worlds import BanditWorld
from alignkit.worlds.bandit import best_of_n, expectation, kl, optimum

BANDIT = BanditWorld(3, 5, seed=1)
REF, REWARD = BANDIT.reference(seed=2), torch.from_numpy(BANDIT.table)
UNTIED, TIED = [0.3, -1.0, 2.0, 0.5, 0.4], [1.0, 0.0, 1.0, 0.0, -2.0]


def objective(logp, beta):
    """E[reward] - beta * KL(pi || ref), averaged over prompts."""
    return (expectation(logp, REWARD) - beta * kl(logp, REF)).mean()


def minimize(loss, logits, steps=40):
    """LBFGS to the end of double precision."""
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return logits.detach()


def gradient(loss, logits):
    return torch.autograd.grad(loss(torch.log_softmax(logits, -1)), logits)[0]


# -- the optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_nothing_beats_the_optimum(beta):
    best = optimum(REF, REWARD, beta)
    assert torch.allclose(best.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    logits = best.clone().requires_grad_()
    assert gradient(lambda logp: objective(logp, beta), logits).abs().max() < 1e-12  # stationary
    noise = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(100):
            shift = scale * torch.randn(best.shape, generator=noise, dtype=torch.float64)
            assert objective(torch.log_softmax(best + shift, -1), beta) < objective(best, beta)


def test_numerical_optimization_finds_the_optimum():
    logits = REF.clone().requires_grad_()
    found = minimize(lambda: -objective(torch.log_softmax(logits, -1), 0.5), logits)
    best = optimum(REF, REWARD, 0.5)
    torch.testing.assert_close(objective(torch.log_softmax(found, -1), 0.5), objective(best, 0.5), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.log_softmax(found, -1), best, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_the_value_of_the_optimum_is_beta_log_z(beta):
    log_z = torch.logsumexp(REF + REWARD / beta, -1)
    torch.testing.assert_close(objective(optimum(REF, REWARD, beta), beta), beta * log_z.mean(), atol=1e-9, rtol=0)


def test_dpo_on_bradley_terry_labels_ends_at_the_optimum():
    beta, first, second = 0.7, *zip(*itertools.permutations(range(5), 2), strict=True)
    first, second = list(first), list(second)
    logits = torch.zeros_like(REF).requires_grad_()

    def population_loss():
        logp = torch.log_softmax(logits, -1)
        p_first = torch.sigmoid(REWARD[:, first] - REWARD[:, second])
        loss = dpo_loss(logp[:, first], logp[:, second], REF[:, first], REF[:, second], beta)
        return (p_first * loss).mean()

    found = torch.log_softmax(minimize(population_loss, logits), -1)
    torch.testing.assert_close(found, optimum(REF, REWARD, beta), atol=1e-6, rtol=0)


# -- best of n -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("reward", [UNTIED, TIED, [1.0] * 5])
def test_best_of_n_equals_the_enumeration_of_all_draws(reward, n):
    p, exact = REF[0].exp(), torch.zeros(5, dtype=torch.float64)
    for draw in itertools.product(range(5), repeat=n):
        winners = [k for k in draw if reward[k] == max(reward[j] for j in draw)]
        for k in winners:
            exact[k] += p[list(draw)].prod() / len(winners)
    got = best_of_n(REF[:1], torch.tensor([reward], dtype=torch.float64), n)[0].exp()
    torch.testing.assert_close(got, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 5000])
@pytest.mark.parametrize("reward", [UNTIED, TIED, [1.0] * 5])
def test_kl_of_best_of_n_is_exact_with_and_without_ties(reward, n):
    reward = torch.tensor(reward, dtype=torch.float64)
    levels = [REF[0].exp()[reward == level].sum().item() for level in sorted(set(reward.tolist()))]
    exact = kl(best_of_n(REF[:1], reward[None], n), REF[:1]).item()
    assert core.kl_of_best_of_n(levels, [n])[0] == pytest.approx(exact, abs=1e-9)
    assert exact <= core.kl_bound([n])[0] + 1e-12
    # impossible levels change nothing
    assert core.kl_of_best_of_n([0.0, *levels, 0.0], [n])[0] == pytest.approx(exact, abs=1e-9)


def test_the_bound_is_reached_without_ties_and_only_then():
    ns = np.array([1, 2, 8, 64])
    many = np.full(200_000, 1 / 200_000)
    np.testing.assert_allclose(core.kl_of_best_of_n(many, ns), core.kl_bound(ns), atol=1e-3)
    tied = core.kl_of_best_of_n(np.full(10, 0.1), ns)
    assert (tied[1:] < core.kl_bound(ns)[1:] - 0.003).all() and abs(tied[0]) < 1e-12
    assert tied[-1] == pytest.approx(np.log(10), abs=0.01)  # all it can do is pick the best tenth


def test_best_of_n_kl_from_samples_counts_levels():
    scores = np.array([[0.0, 1.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    expected = [core.kl_of_best_of_n([0.25, 0.5, 0.25], [1, 3]), [0, 0]]
    np.testing.assert_allclose(core.best_of_n_kl(scores, [1, 3]), expected, atol=1e-12)


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 2.0, 2.0, 0.0, 2.0, 1.0], [7.0] * 6])
@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_weights_average_over_all_subsets(scores, n):
    exact, subsets = np.zeros(6), list(itertools.combinations(range(6), n))
    for subset in subsets:
        winners = [k for k in subset if scores[k] == max(scores[j] for j in subset)]
        exact[winners] += 1 / len(winners) / len(subsets)
    np.testing.assert_allclose(core.best_of_n_weights([scores], n)[0], exact, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("proxy", [[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
def test_best_of_n_curve_is_unbiased_over_all_samples_one_could_draw(proxy, n):
    logp = BanditWorld(1, 3).reference(seed=5)
    p, proxy, values = logp[0].exp().numpy(), np.array(proxy), np.array([0.3, -2.0, 1.0])
    mean = 0.0
    for draw in itertools.product(range(3), repeat=4):
        draw = list(draw)
        mean += p[draw].prod() * core.best_of_n_curve(proxy[None, draw], values[None, draw], [n])[0, 0]
    exact = expectation(best_of_n(logp, torch.from_numpy(proxy)[None], n), torch.from_numpy(values)).item()
    assert mean == pytest.approx(exact, abs=1e-9)


def test_best_of_n_weights_stay_accurate_for_many_samples():
    proxy = np.random.default_rng(0).normal(size=(2, 20_000))
    for n in (1, 16, 1024, 20_000):
        weights = core.best_of_n_weights(proxy, n)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-8)
    assert (weights.argmax(1) == proxy.argmax(1)).all() and weights.max() == pytest.approx(1)
    np.testing.assert_allclose(core.best_of_n_curve(proxy, proxy, [1])[:, 0], proxy.mean(1), atol=1e-9)


@pytest.mark.parametrize("n", [0, 5])
def test_more_than_there_are_samples_is_an_error(n):
    with pytest.raises(AlignkitError, match=f"best of {n} can't be estimated from 4 samples"):
        core.best_of_n_weights(np.zeros((1, 4)), n)


# -- KL estimators and policy gradients ------------------------------------------------------------

POLICY = torch.log_softmax(1.5 * BANDIT.reference(seed=7), -1)  # sharper than the reference


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    true = kl(POLICY, REF)
    means = {kind: expectation(POLICY, kl_estimate(POLICY, REF, kind)) for kind in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], true, atol=1e-9, rtol=0)
    torch.testing.assert_close(means["k3"], true, atol=1e-9, rtol=0)
    assert (means["k2"] - true).abs().min() > 1e-2
    assert kl_estimate(POLICY, REF, "k3").min() >= 0 > kl_estimate(POLICY, REF, "k1").min()


def test_gradients_of_kl_estimators():
    logits = POLICY.clone().requires_grad_()
    true = gradient(lambda logp: kl(logp, REF).sum(), logits)
    p = POLICY.exp()
    in_reward = gradient(lambda logp: (p * kl_estimate(POLICY, REF, "k1") * logp).sum(), logits)
    as_loss = {
        kind: gradient(lambda logp, kind=kind: (p * kl_estimate(logp, REF, kind)).sum(), logits)
        for kind in ("k1", "k2", "k3")
    }
    reverse = gradient(lambda logp: kl(REF, logp).sum(), logits)
    torch.testing.assert_close(in_reward, true, atol=1e-9, rtol=0)
    torch.testing.assert_close(as_loss["k2"], true, atol=1e-9, rtol=0)
    assert as_loss["k1"].abs().max() < 1e-9 < true.abs().max()  # as a loss, k1 says nothing on average
    torch.testing.assert_close(as_loss["k3"], reverse, atol=1e-9, rtol=0)  # k3 pulls along KL(ref || pi)
    assert (as_loss["k3"] - true).abs().max() > 1e-2


def group_gradients(advantages_of, k, shift=0.0):
    """Probability and policy-gradient estimate of every group of k draws from one prompt of 4 outcomes."""
    logp, reward = (
        BanditWorld(1, 4).reference(seed=3)[0],
        torch.tensor([1.0, -0.5, 0.2, 2.0]).double() + shift,
    )
    score = torch.eye(4, dtype=torch.float64) - logp.exp()  # gradient of log pi(y) in the logits, one row a y
    groups = torch.tensor(list(itertools.product(range(4), repeat=k)))
    advantage = advantages_of(reward[groups])
    estimates = (advantage[..., None] * score[groups]).mean(1)
    exact = torch.autograd.functional.jacobian(lambda z: (torch.softmax(z, -1) * reward).sum(), logp)
    return logp[groups].sum(1).exp(), estimates, exact


@pytest.mark.parametrize("k", [2, 3])
def test_leave_one_out_is_an_unbiased_policy_gradient(k):
    p, estimates, exact = group_gradients(leave_one_out, k)
    assert p.sum().item() == pytest.approx(1)
    torch.testing.assert_close(p @ estimates, exact, atol=1e-9, rtol=0)
    _, normalized, _ = group_gradients(group_normalized, k)
    assert (p @ normalized - exact).abs().max() > 1e-2  # dividing by the group's spread is not


def test_the_variance_of_leave_one_out_falls_with_the_group_and_ignores_a_shift():
    def variance(advantages_of, k, shift=0.0):
        p, estimates, exact = group_gradients(advantages_of, k, shift)
        return (p @ (estimates - exact) ** 2).sum().item()

    falling = [variance(leave_one_out, k) for k in (2, 3, 4, 5)]
    assert all(a > b for a, b in itertools.pairwise(falling))
    assert variance(leave_one_out, 3, shift=10.0) == pytest.approx(falling[1])
    assert variance(lambda r: r, 3, shift=10.0) > 10 * falling[1]  # what a baseline is for


# -- the frontier ----------------------------------------------------------------------------------


def samples_of(p, each=1000):
    """Outcomes in exact proportion to p (multiples of 1 / each)."""
    return np.repeat(np.arange(len(p)), np.round(np.array(p) * each).astype(int))


def test_tilted_samples_equal_the_exact_optimum():
    p = np.array([[0.05, 0.25, 0.4, 0.2, 0.1], [0.3, 0.3, 0.2, 0.15, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]])
    ref, betas = torch.from_numpy(np.log(p)), [5.0, 1.0, 0.4]
    drawn = np.stack([REWARD[i].numpy()[samples_of(row)] for i, row in enumerate(p)])
    points = core.frontier(drawn, betas, values=drawn**2)
    for j, beta in enumerate(betas):
        best = optimum(ref, REWARD, beta)
        assert points.kl[j] == pytest.approx(kl(best, ref).mean().item(), abs=1e-9)
        assert points.value[j] == pytest.approx(expectation(best, REWARD**2).mean().item(), abs=1e-9)


def test_random_samples_approach_the_frontier_of_a_normal_reward():
    reward = np.random.default_rng(0).normal(size=(8, 20_000))
    points = core.frontier(reward, [2.0, 1.0, 0.5])
    np.testing.assert_allclose(points.kl, [1 / 8, 1 / 2, 2], rtol=0.05)  # KL = 1 / (2 beta^2)
    np.testing.assert_allclose(points.value, [1 / 2, 1, 2], rtol=0.05)  # E[r] = 1 / beta
    assert points.at(0.5) == pytest.approx(1, abs=0.03)


def test_the_frontier_rises_and_stops_where_samples_run_out():
    reward = np.random.default_rng(1).normal(size=(3, 2000))
    points = core.frontier(reward)
    order = np.argsort(points.kl)
    assert (np.diff(points.value[order]) >= 0).all() and (np.diff(points.ess[order]) <= 0).all()
    shown = points.shown()
    assert 0 < len(shown.beta) < len(points.beta) and shown.ess.min() >= core.MIN_ESS > points.ess.min()
    middle = shown.kl.max() / 2
    assert shown.value.min() < points.at(middle) < shown.value.max()
    assert points.at(shown.kl[3]) == pytest.approx(shown.value[3])
    assert np.isnan(points.at(shown.kl.max() + 0.01))
    assert np.isnan(core.frontier(reward[:, :20]).at(0.1))  # too few samples to show any point


def test_effective_sample_size_is_that_of_the_worst_prompt():
    reward = np.stack([np.zeros(100), np.r_[np.zeros(99), 100.0]])
    assert core.frontier(reward, [1.0]).ess[0] == pytest.approx(1)
    assert core.frontier(reward[:1], [1.0]).ess[0] == pytest.approx(100)


@pytest.mark.parametrize("target", [0.05, 0.5, 2.0])
def test_beta_for_kl_inverts_the_frontier(target):
    reward = np.random.default_rng(2).normal(size=(4, 5000))
    beta = core.beta_for_kl(reward, target)
    assert core.frontier(reward, [beta]).kl[0] == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize("reward", [np.zeros((1, 100)), np.random.default_rng(0).normal(size=(1, 100))])
def test_a_kl_out_of_reach_is_an_error_with_the_range(reward):
    with pytest.raises(AlignkitError, match="KL of 5.0 nats: these rewards reach .* to .*draw more samples"):
        core.beta_for_kl(reward, 5.0)


# -- sequence KL -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moved(toy):
    other = toy.copy("moved")
    with torch.no_grad():
        other.model.model.embed_tokens.weight.add_(
            torch.randn(other.model.model.embed_tokens.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.2
        )
    return other


@torch.no_grad()
def next_logp(policy, ids):
    return torch.log_softmax(policy.model(torch.tensor([ids])).logits[0, -1].double(), -1)


def test_sequence_kl_of_two_tokens_is_that_of_the_enumeration(toy, moved):
    head, eos = toy.prompt_ids("a c"), toy.tokenizer.eos_token_id
    p, q = next_logp(moved, head), next_logp(toy, head)
    one = (p.exp() * (p - q)).sum().item()
    two = one + sum(
        p[t].exp().item() * kl(next_logp(moved, [*head, t])[None], next_logp(toy, [*head, t])[None]).item()
        for t in range(len(p))
        if t != eos
    )
    got = [core.sequence_kl(moved, toy, ["a c"], n=4000, max_new_tokens=t)[0] for t in (1, 2)]
    assert 0.01 < one < two
    assert got[0] == pytest.approx(one, abs=1e-5)  # the first position needs no sampling
    assert got[1] == pytest.approx(two, rel=0.05)


def test_sequence_kl_to_itself_is_zero_and_batches_do_not_matter(patient, world):
    prompts = world.prompts("seen")[:6]
    np.testing.assert_allclose(core.sequence_kl(patient, patient, prompts, n=4), 0, atol=1e-6)


def test_sequence_kl_agrees_with_sampled_log_ratios_at_lower_variance(patient, world):
    other = patient.copy()
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.05)
    prompts = world.prompts("seen")[:2] * 80
    summed = core.sequence_kl(other, patient, prompts, n=1, seed=1)
    rollout = other.rollout(prompts, 1, seed=1)
    with torch.no_grad():
        ratios = (other.token_logprobs(rollout.batch) - patient.token_logprobs(rollout.batch)).sum(1).numpy()
    error = np.std(ratios - summed) / len(prompts) ** 0.5
    assert abs((ratios - summed).mean()) < 4 * error and summed.min() >= 0
    assert summed.std() < 0.7 * ratios.std()


# -- the chart -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def charts(world, patient, tiny):
    return evaluation.chart(world, patient, n=8), evaluation.chart(world, patient, tiny, n=8)


def test_the_chart_reports_what_was_sampled(world, patient, charts):
    alone, _ = charts
    rollout = patient.rollout(world.prompts("test"), 8, seed=0)
    symptoms = world.symptoms(rollout.prompts, rollout.completions)
    expected = {("gold", "gold"): world.gold(rollout.prompts, rollout.completions).mean()}
    expected |= {("symptom", k): np.nanmean(v) for k, v in symptoms.items()}
    for key, value in expected.items():
        assert alone.table.loc[[key], "before"].item() == pytest.approx(value)
    assert {k[1] for k in alone.table.index} == {"gold", *world.aspects, *symptoms, "words"}
    assert "after" not in alone.table and alone.samples["completion"].tolist() == rollout.completions


def test_the_chart_shows_the_change_with_its_interval(charts):
    alone, both = charts
    table = both.table
    np.testing.assert_allclose(table["change"], table["after"] - table["before"], atol=1e-9)
    np.testing.assert_allclose(table["before"], alone.table["before"])
    for name in ("before", "after", "change"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    gold = table.loc[[("gold", "gold")]]
    assert gold["change_high"].item() < 0  # an untrained policy is worse
    assert "change" in both._repr_html_() and "before" in alone._repr_html_()


def test_an_unchanged_policy_shows_no_change(world, patient):
    table = evaluation.chart(world, patient, patient.copy(), n=2).table
    assert (table[["change", "change_low", "change_high"]] == 0).all().all()


def test_charts_and_maps_can_be_drawn(charts):
    plots.use_style()
    figures = [c.plot() for c in charts] + [plots.where_we_are("reward", "05"), plots.where_we_are()]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    plots.plt.close("all")


def test_bands_average_rows(charts):
    figure, ax = plots.plt.subplots()
    mean = plots.band(ax, [0, 1], np.array([[0.0, 1.0], [2.0, 3.0]]), plots.GOLD, "gold")
    np.testing.assert_array_equal(mean, [1, 2])
    assert [t.get_text() for t in ax.texts] == ["gold"]
    plots.plt.close(figure)


def test_completions_are_escaped_in_html():
    html = plots.completions([("<p>", "a & b", 0.5)], "<t>")
    assert "&lt;p&gt;" in html and "a &amp; b" in html and "+0.50" in html and "<t>" not in html
