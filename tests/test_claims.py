"""The ledger: rules and verdicts, what counts as evidence, what makes it stale, what may be recorded."""

import errno
import json
import math
import os

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from statsmodels.stats.power import TTestPower

from alignkit import claims, files
from alignkit.claims import fingerprint, statistics
from alignkit.claims import ledger as ledger_module
from alignkit.errors import AlignkitError, DataError
from alignkit.files import write_atomic
from alignkit.intervals import mean_estimate

NOTEBOOK = "98_test"


def entry(id="gap", kind="seeded", rule=None, **other):
    return {
        "id": id,
        "notebook": NOTEBOOK,
        "phase": "reward",
        "dimension": "format",
        "statement": "a is above b",
        "source": ["2305.18290", "Ng, Harada & Russell 1999"],
        "kind": kind,
        "measure": "a - b",
        "rule": rule or {"above": 0},
        "could_fail_because": "b may be larger",
    } | other


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A project of its own: claims file, one notebook, a results folder. Returns helpers."""
    notebooks, results = tmp_path / "notebooks", tmp_path / "results"
    notebooks.mkdir()
    monkeypatch.setenv("ALIGNKIT_CLAIMS", str(tmp_path / "claims.yaml"))
    monkeypatch.delenv("ALIGNKIT_NOTEBOOK", raising=False)
    monkeypatch.delenv("ALIGNKIT_RESULTS", raising=False)
    monkeypatch.setattr(ledger_module, "RESULTS", results)
    monkeypatch.setattr(ledger_module, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(fingerprint, "NOTEBOOKS", notebooks)
    fingerprint.world_version.cache_clear()

    class House:
        folder, path = tmp_path, notebooks / f"{NOTEBOOK}.ipynb"

        def register(self, *entries):
            (tmp_path / "claims.yaml").write_text(yaml.safe_dump(list(entries)))

        def notebook(self, *code, prose="# Title", seed=0):
            cells = [nbformat.v4.new_markdown_cell(prose)]
            cells.append(nbformat.v4.new_code_cell(f"seed = {seed}", metadata={"tags": ["parameters"]}))
            cells += [nbformat.v4.new_code_cell(source) for source in code]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), self.path)

        def run(self, seed, profile="thorough", uses=None, **values):
            """What a run of the notebook would store."""
            monkeypatch.setenv("ALIGNKIT_RESULTS", str(results))
            ledger = claims.open(NOTEBOOK, seed=seed, profile=profile)
            for name, value in values.items():
                ledger.record(name, value)
            ledger.uses(**(uses or {}))
            ledger.close()
            monkeypatch.delenv("ALIGNKIT_RESULTS")
            return claims.result_path(results, NOTEBOOK, profile, seed)

        def row(self, id="gap"):
            return next(row for row in claims.summarize() if row["id"] == id)

    house = House()
    house.register(entry())
    house.notebook("x = 1")
    return house


# --- the register


def test_shipped_register_is_valid():
    assert claims.load(files.DATA / "claims.yaml")


@pytest.mark.parametrize(
    ("kind", "rule", "told"),
    [
        ("seeded", {"over": 1}, "above, below, within"),
        ("seeded", {"above": 1, "below": 2}, "exactly one"),
        ("seeded", {"max_error": 1e-9}, "above, below, within"),
        ("seeded", "above 1", "exactly one"),
        ("identity", {"above": 1}, "max_error"),
        ("identity", {"max_error": 0}, "above 0"),
        ("population", {"within": [0.9]}, "two numbers"),
        ("population", {"within": [0.9, 0.1]}, "smaller one"),
        ("seeded", {"above": "__import__('os')"}, "finite number"),
        ("seeded", {"below": math.nan}, "finite number"),
        ("seeded", {"below": True}, "finite number"),
    ],
)
def test_bad_rules_are_named(house, kind, rule, told):
    house.register(entry(kind=kind, rule=rule))
    with pytest.raises(AlignkitError) as error:
        claims.load()
    assert "gap" in str(error.value) and told in str(error.value)


def test_yaml_numbers_without_a_dot_are_numbers(house):
    (house.folder / "claims.yaml").write_text(
        yaml.safe_dump([entry(kind="identity", rule={"max_error": 1})]).replace("max_error: 1", "max_error: 1e-9")
    )
    assert claims.load()["gap"].rule.high == 1e-9


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([entry(kind="vibe")], "identity, demonstration, seeded, population"),
        ([entry(), entry()], "twice"),
        ([entry(measure="")], "missing measure"),
        ([entry(verdict="yes")], "unknown verdict"),
        ([entry(phase="recovery")], "feedback, reward"),
        ([entry(source=2305.18290)], "quote"),
        ([entry(source="2305.99999")], "2305.99999 is not in data/catalog.csv"),
        (["gap"], "expected a mapping"),
    ],
)
def test_bad_entries_are_named(house, entries, told):
    house.register(*entries)
    with pytest.raises(DataError, match=told):
        claims.load()


def test_a_broken_file_is_named(house):
    (house.folder / "claims.yaml").write_text("- id: [")
    with pytest.raises(DataError, match="claims.yaml"):
        claims.load()


# --- verdicts


@pytest.mark.parametrize(
    ("rule", "verdicts"),  # for values around 1, around 0, and around 5
    [
        ({"above": 0.5}, ("reproduced", "contradicted", "reproduced")),
        ({"below": 0.5}, ("contradicted", "reproduced", "contradicted")),
        ({"within": [0.5, 1.5]}, ("reproduced", "contradicted", "contradicted")),
        ({"above": 1.0}, ("open", "contradicted", "reproduced")),
        ({"within": [1.0, 2.0]}, ("open", "contradicted", "contradicted")),
    ],
)
def test_seeded_verdicts_and_p_values_agree(rule, verdicts):
    rule = statistics.Rule.parse(rule, "seeded", "test")
    for center, expected in zip((1.0, 0.0, 5.0), verdicts, strict=True):
        found = mean_estimate(center + np.array([-0.1, 0.1, 0.05, -0.04, 0.0]))
        assert statistics.verdict(rule, found) == expected
        assert (statistics.p_value(rule, found) < 0.05) == (expected != "open")


def test_verdict_and_p_value_agree_for_any_sample():
    generator = np.random.default_rng(0)
    rules = [{"above": 0.2}, {"below": 0.2}, {"within": [-0.3, 0.5]}]
    seen = set()
    for _ in range(300):
        sample = generator.normal(generator.uniform(-1, 1), 0.3, size=6)
        for rule in rules:
            rule = statistics.Rule.parse(rule, "seeded", "test")
            found = mean_estimate(sample)
            verdict = statistics.verdict(rule, found)
            assert (statistics.p_value(rule, found) < 0.05) == (verdict != "open")
            seen.add((rule.key, verdict))
    assert len(seen) == 9


def test_interval_is_students_t():
    values = [0.1, 0.4, 0.2, 0.7]
    found = mean_estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    p = statistics.p_value(statistics.Rule.parse({"above": 0.1}, "seeded", "test"), found)
    assert p == pytest.approx(stats.ttest_1samp(values, 0.1).pvalue)


def test_equal_values_have_an_interval_of_width_zero():
    found = mean_estimate([0.5, 0.5, 0.5])
    rule = statistics.Rule.parse({"above": 0.4}, "seeded", "test")
    assert (found.low, found.high) == (0.5, 0.5)
    assert statistics.verdict(rule, found) == "reproduced" and statistics.p_value(rule, found) is None


def test_one_more_seed_lies_where_it_was_predicted():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        *values, further = rng.normal(0.3, 0.2, size=11)
        low, high = statistics.prediction("seeded", values)
        inside += low < further < high
    assert 0.93 < inside / 1000 < 0.97
    half = stats.t.ppf(0.975, 9) * np.std(values, ddof=1) * np.sqrt(1 + 1 / 10)
    assert (low, high) == (pytest.approx(np.mean(values) - half), pytest.approx(np.mean(values) + half))
    runs = [[[1, 1], [2, 2], [3, 4], [4, 3]], [[1, 2], [2, 3], [3, 1], [4, 4]]]  # correlations 0.8 and 0.4
    low, high = statistics.prediction("population", runs)
    assert -1 < low < 0.4 < 0.8 < high < 1
    assert statistics.prediction("seeded", [1.0]) == statistics.prediction("identity", [0.0, 0.0]) == (None, None)


def test_power_is_the_share_of_replications_that_decide():
    values, rng = np.array([0.02, 0.11, 0.07, 0.16, 0.04]), np.random.default_rng(0)
    for rule in ({"above": 0.03}, {"below": 0.12}, {"within": [0.0, 0.14]}, {"above": 0.13}, {"within": [0.1, 0.2]}):
        rule = statistics.Rule.parse(rule, "seeded", "test")
        new = rng.normal(values.mean(), values.std(ddof=1), size=(2000, 10))
        share = np.mean([statistics.verdict(rule, mean_estimate(run)) != "open" for run in new])
        assert statistics.power("seeded", rule, values, 10) == pytest.approx(share, abs=0.03)
    above = statistics.Rule.parse({"above": 0.03}, "seeded", "test")
    effect = (values.mean() - 0.03) / values.std(ddof=1)
    textbook = TTestPower().power(effect, nobs=10, alpha=0.025, alternative="larger")
    assert statistics.power("seeded", above, values, 10) == pytest.approx(textbook, abs=2e-3)
    assert statistics.power("seeded", above, [0.5, 0.5], 10) is statistics.power("seeded", above, [0.5], 10) is None


def test_population_is_rank_correlation_over_whole_seeds():
    generator = np.random.default_rng(1)
    points = []
    for _ in range(6):
        x = generator.normal(size=8)
        points.append(np.column_stack([x, np.exp(x) + generator.normal(0, 0.1, size=8)]).tolist())
    found = statistics.estimate("population", points)
    pooled = np.concatenate([np.array(p) for p in points])
    assert found.value == pytest.approx(stats.spearmanr(pooled[:, 0], pooled[:, 1]).statistic)
    assert found.low < found.value < found.high
    assert statistics.estimate("population", points).low == found.low  # same evidence, same interval
    for rule, expected in (
        ({"above": 0.5}, "reproduced"),
        ({"below": 0.5}, "contradicted"),
        ({"within": [-0.2, 0.2]}, "contradicted"),
        ({"above": found.value}, "open"),
    ):
        rule = statistics.Rule.parse(rule, "population", "test")
        assert statistics.verdict(rule, found) == expected
        assert (statistics.p_value(rule, found) < 0.05) == (expected != "open")


def test_population_without_variation_is_no_correlation():
    found = statistics.estimate("population", [[[1, 1], [1, 2]], [[1, 3], [1, 4]]])
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_identity_is_judged_by_its_worst_run(house):
    house.register(entry(kind="identity", rule={"max_error": 1e-9}))
    house.run(1, gap=1e-12)
    assert house.row()["verdict"] == "reproduced"
    house.run(2, gap=1e-6)
    assert house.row()["verdict"] == "contradicted" and house.row()["mean"] == 1e-6
    assert house.row()["p_value"] is None


def test_holm_counts_all_findings_with_evidence(house):
    names = ["a", "b", "c", "d"]
    house.register(*[entry(id=name) for name in names], entry(id="unmeasured", notebook="97_other"))
    shifts = {"a": 0.5, "b": 0.15, "c": 0.0, "d": 0.1}
    noise = [-0.1, 0.12, 0.02, -0.08, 0.04]
    for seed, error in enumerate(noise, 1):
        house.run(seed, **{name: shift + error for name, shift in shifts.items()})
    rows = {row["id"]: row for row in claims.summarize()}
    p = sorted(rows[name]["p_value"] for name in names)
    by_hand = {name: False for name in names}
    for rank, value in enumerate(p):  # stop at the first that fails
        if value * (len(p) - rank) >= 0.05:
            break
        by_hand[next(name for name in names if rows[name]["p_value"] == value)] = True
    assert {name: rows[name]["survives_holm"] for name in names} == by_hand
    assert by_hand == {"a": True, "b": False, "c": False, "d": False}
    assert [rows[name]["bh"] for name in names] == [True, True, False, False]
    assert rows["b"]["verdict"] == "reproduced"  # on its own, but not after the correction
    assert rows["unmeasured"]["verdict"] == "unmeasured" and not rows["unmeasured"]["survives_holm"]


def test_demonstrations_are_no_findings(house):
    house.register(entry(kind="demonstration"))
    for seed in (1, 2, 3):
        house.run(seed, gap=1 + seed / 10)
    assert house.row()["verdict"] == "reproduced"
    assert house.row()["p_value"] is None and not house.row()["survives_holm"]


# --- what counts as evidence


def test_only_thorough_runs_of_evidence_seeds_count(house):
    for seed, profile in ((0, "thorough"), (100, "thorough"), (1, "smoke"), (2, "standard")):
        house.run(seed, profile, gap=1.0)
    assert house.row()["verdict"] == "unmeasured" and house.row()["n_seeds"] == 0
    house.run(1, gap=1.0)
    assert house.row()["verdict"] == "open" and house.row()["ci_low"] is None  # one seed: no interval
    house.run(99, gap=1.1)
    assert house.row()["verdict"] == "reproduced" and house.row()["n_seeds"] == 2


def test_runs_with_other_parameters_do_not_count(house):
    path = house.run(1, gap=1.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": {"beta": 1}}))
    assert house.row()["n_seeds"] == 0


def test_a_damaged_result_is_named(house):
    path = house.run(1, gap=1.0)
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match="thorough-seed1.json"):
        claims.summarize()


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "result.json", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(AlignkitError, match="No space left.*is kept"):
                write_atomic(path, "new")
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


# --- staleness


def test_fresh_evidence_is_not_stale(house):
    house.run(1, gap=1.0)
    assert house.row()["stale"] is False


def test_prose_outputs_and_parameters_void_nothing(house):
    house.run(1, gap=1.0)
    house.notebook("x = 1", prose="# Another title", seed=7)
    assert house.row()["stale"] is False


def test_changed_code_of_the_notebook_is_stale(house):
    house.run(1, gap=1.0)
    house.notebook("x = 2")
    assert house.row()["stale"] == ["notebook code changed"]


def test_a_changed_rule_is_stale_and_says_for_which_seeds(house):
    house.run(1, gap=1.0)
    house.register(entry(rule={"above": 0.5}))
    assert house.row()["stale"] == ["rule changed since the run"]
    house.run(2, gap=1.0)
    assert house.row()["stale"] == ["rule changed since the run (seed 1)"]
    house.register(entry(rule={"above": 0.0}))
    assert house.row()["stale"] == ["rule changed since the run (seed 2)"]


@pytest.mark.parametrize("field", ["statement", "measure", "source"])
def test_a_claim_reworded_after_its_evidence_is_stale(house, field):
    house.run(1, gap=1.0)
    house.register(entry(could_fail_because="said otherwise", phase="feedback"))  # where it stands, and why: not what
    assert house.row()["stale"] is False
    house.register(entry(**{field: "said otherwise"}))
    assert house.row()["stale"] == ["rule changed since the run"]


def package(folder, **modules):
    """A package of the same name elsewhere: {dotted name: source}."""
    for name, source in modules.items():
        path = folder.joinpath("alignkit", *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for inside in (folder / "alignkit").rglob("*"):
        if inside.is_dir():
            (inside / "__init__.py").touch()
    return folder


def test_the_closure_follows_imports_wherever_they_stand(tmp_path):
    root = package(
        tmp_path,
        rewards__base="from alignkit.worlds.base import World\n",
        worlds__base="def load():\n    from alignkit.worlds import shapes\n",
        worlds__shapes="import os\n",
        optimize__rl="from alignkit import rewards\n",
        plots="from alignkit import optimize\n",
    )
    reached = fingerprint.closure("from alignkit import plots\nfrom alignkit.rewards import base", root)
    assert set(reached) == {
        "alignkit.rewards", "alignkit.rewards.base", "alignkit.worlds", "alignkit.worlds.base", "alignkit.worlds.shapes"
    }  # fmt: skip
    assert fingerprint.closure("from alignkit import load_policy")["alignkit.policy"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("# why\ndef f(x):\n\n    'doc'\n    return x + 1  # so", True),
        ("def f(x):\n    return x + 2", False),
        ("def f(x):\n    return (x) + 1", True),
        ("def f(x):\n    return x + 1.0", False),
        ("def g(x):\n    return x + 1", False),
    ],
)
def test_only_what_a_value_depends_on_is_hashed(other, same):
    assert (fingerprint.code_hash("def f(x):\n    return x + 1") == fingerprint.code_hash(other)) is same


def test_messages_are_left_out_and_conditions_are_not():
    source = "import warnings\ndef f(x):\n    if x < {0}:\n        raise ValueError('{1}')\n    warnings.warn('{1}')\n"
    assert fingerprint.code_hash(source.format(0, "no")) == fingerprint.code_hash(source.format(0, "oh no"))
    assert fingerprint.code_hash(source.format(0, "no")) != fingerprint.code_hash(source.format(1, "no"))
    error = source.replace("ValueError", "KeyError")
    assert fingerprint.code_hash(source.format(0, "no")) != fingerprint.code_hash(error.format(0, "no"))


def test_a_changed_or_missing_module_is_stale(house, monkeypatch):
    root = package(house.folder, rewards__losses="a = 1\n")
    monkeypatch.setattr(fingerprint.fingerprint_of, "__defaults__", (root,))
    house.notebook("from alignkit.rewards import losses")
    house.run(1, gap=1.0)
    module = root / "alignkit" / "rewards" / "losses.py"
    module.write_text("# why\na = 1   \n\n")
    assert house.row()["stale"] is False
    module.write_text("a = 23\n")
    assert house.row()["stale"] == ["package code changed"]
    module.unlink()
    assert house.row()["stale"] == ["package code changed"]


def test_a_new_world_and_a_new_model_are_stale(house, monkeypatch):
    weights = house.folder / "assistant-0" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    monkeypatch.setattr(fingerprint, "world_version", {"assistant": "assistant-v1"}.get)
    house.run(1, gap=1.0, uses={"world": "assistant-v1", "models": {"assistant-0": weights.parent}})
    assert house.row()["stale"] is False
    monkeypatch.setattr(fingerprint, "world_version", {"assistant": "assistant-v2"}.get)
    assert house.row()["stale"] == ["world assistant-v1 -> v2"]
    weights.write_bytes(b"two")
    assert house.row()["stale"] == ["world assistant-v1 -> v2", "model assistant-0 changed"]
    with pytest.raises(AlignkitError, match="model.safetensors"):
        claims.open(NOTEBOOK).uses(models={"x": house.folder / "nowhere"})


def test_world_versions_from_objects_and_texts():
    class World:
        name, version = "bandit", "bandit-v1-16x8-0"

    assert fingerprint.full_version(World()) == ("bandit", "bandit-v1")
    assert fingerprint.full_version("assistant-v0") == ("assistant", "assistant-v0")
    with pytest.raises(AlignkitError, match="assistant-v1"):
        fingerprint.full_version("assistant")


# --- inside a notebook


def test_unknown_claims_list_the_notebooks_own(house):
    house.register(entry(), entry(id="theirs", notebook="97_other"))
    ledger = claims.open(NOTEBOOK)
    for name in ("gapp", "theirs"):
        with pytest.raises(AlignkitError, match=f"'{name}'.*it has: gap$"):
            ledger.record(name, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", None, True, [1.0], np.array([1.0, 2.0])])
def test_only_finite_numbers_are_recorded(house, value):
    with pytest.raises(AlignkitError, match="gap"):
        claims.open(NOTEBOOK).record("gap", value)


def test_numpy_and_torch_scalars_are_numbers(house):
    import torch

    ledger = claims.open(NOTEBOOK)
    for value in (np.float32(0.5), torch.tensor(0.5), np.int64(1), 1):
        ledger.record("gap", value)
        assert type(ledger.values["gap"]) is float


def test_population_and_identity_values(house):
    house.register(entry(kind="population"), entry(id="same", kind="identity", rule={"max_error": 1e-9}))
    ledger = claims.open(NOTEBOOK)
    ledger.record("gap", np.array([[1, 2], [3, 4]]))
    assert ledger.values["gap"] == [[1.0, 2.0], [3.0, 4.0]]
    for bad in (1.0, [], [1, 2], [(1, 2, 3)], [(1, math.nan)]):
        with pytest.raises(AlignkitError, match="gap"):
            ledger.record("gap", bad)
    with pytest.raises(AlignkitError, match="absolute"):
        ledger.record("same", -1e-12)


def test_close_names_what_is_missing(house):
    house.register(entry(), entry(id="other"))
    ledger = claims.open(NOTEBOOK)
    ledger.record("gap", 1.0)
    with pytest.raises(AlignkitError, match="did not record: other"):
        ledger.close()


def test_interactive_use_writes_nothing(house):
    ledger = claims.open(NOTEBOOK)
    ledger.record("gap", 1.0)
    ledger.close()
    assert not ledger_module.RESULTS.exists()


def test_open_checks_its_arguments(house, monkeypatch):
    for bad in ({"profile": "quick"}, {"seed": -1}, {"seed": "1"}):
        with pytest.raises(AlignkitError, match=next(iter(bad))):
            claims.open(NOTEBOOK, **bad)
    monkeypatch.setenv("ALIGNKIT_NOTEBOOK", "/x/02_reward_modeling.ipynb")
    with pytest.raises(AlignkitError, match="02_reward_modeling"):
        claims.open(NOTEBOOK)


def test_series_come_back_from_evidence_seeds(house, monkeypatch):
    monkeypatch.setenv("ALIGNKIT_RESULTS", str(ledger_module.RESULTS))
    for seed in (0, 1, 2):
        ledger = claims.open(NOTEBOOK, seed=seed, profile="thorough")
        ledger.record("gap", 1.0)
        ledger.series("curve", {"kl": np.array([0.0, 1.0 / 3]), "gold": pd.Series([1, math.nan])})
        ledger.series("table", pd.DataFrame({"n": [1, 2]}))
        ledger.close()
    recorded = claims.open(NOTEBOOK).recorded("curve")
    assert recorded == {seed: {"kl": [0.0, 0.333333], "gold": [1.0, None]} for seed in (1, 2)}
    assert claims.open(NOTEBOOK).recorded("table")[1] == {"n": [1, 2]}
    assert claims.open(NOTEBOOK).recorded("nothing") == {}
    with pytest.raises(AlignkitError, match="curve"):
        claims.open(NOTEBOOK).series("curve", object())


def test_result_tells_where_it_is_from(house):
    result = json.loads(house.run(3, gap=1.0).read_text())
    assert (result["notebook"], result["profile"], result["seed"]) == (NOTEBOOK, "thorough", 3)
    assert result["values"] == {"gap": 1.0} and set(result["rules"]) == {"gap"}
    assert result["fingerprint"]["notebook"] == fingerprint.code_hash(fingerprint.read_code(house.path))
    assert result["processor"]
    assert result["commit"] is None or len(result["commit"]) == 40
    assert isinstance(result["dirty"], bool) and set(result["versions"]) >= {"python", "torch"}


def test_table_shows_value_evidence_and_a_verdict_in_words(house):
    for seed in (1, 2, 3):
        house.run(seed, gap=0.5 + seed / 100)
    house.notebook("x = 2")
    ledger = claims.open(NOTEBOOK, profile="standard")
    ledger.record("gap", 0.25)
    for text in (repr(ledger.table()), ledger.table()._repr_html_()):
        assert "a is above b" in text and "above 0" in text and "0.25" in text
        assert "0.52 [" in text and "3 seeds" in text and "reproduced" in text
        assert "stale: notebook code changed" in text


def test_table_at_smoke_has_no_verdict(house):
    for seed in (1, 2, 3):
        house.run(seed, gap=0.5 + seed / 100)
    ledger = claims.open(NOTEBOOK, profile="smoke")
    ledger.record("gap", 0.25)
    text = ledger.table()._repr_html_()
    assert "0.25" in text and "reproduced" not in text and "smoke" in text


def test_table_escapes_html(house):
    house.register(entry(statement="a < b & <script>"))
    assert "<script>" not in claims.open(NOTEBOOK).table()._repr_html_()
