"""The literature table: what is shipped is valid, and a mistake in it is named by row and column."""

import pkgutil

import pandas as pd
import pytest

from alignkit import catalog
from alignkit.errors import AlignkitError, DataError
from alignkit.files import NOTEBOOKS


@pytest.fixture
def edited(tmp_path):
    """Write the catalog with one cell changed; returns the path."""

    def edit(column, value, row="dpo"):
        table = pd.read_csv(catalog.CATALOG, dtype=str, keep_default_na=False)
        table.loc[table["id"] == row, column] = value
        path = tmp_path / "catalog.csv"
        table.to_csv(path, index=False)
        return path

    return edit


def test_shipped_catalog_is_valid_and_sorted():
    table = catalog.load()
    assert len(table) >= 153
    assert table["arxiv_id"].is_monotonic_increasing
    assert {"2301.11270", "2307.09288", "2410.09724"} <= set(table["arxiv_id"])
    assert table["year"].between(2015, 2030).all()


@pytest.mark.parametrize(
    ("column", "value", "remedy"),
    [
        ("format", "number", "scalar, vector, textual, ranking"),
        ("granularity", "", "is empty"),
        ("year", "2024", "2305.18290"),
        ("month", "6", "2305.18290"),
        ("arxiv_id", "23.1", "is not an arXiv id"),
        ("arxiv_url", "https://arxiv.org/abs/2305.18291", "should be https://arxiv.org/abs/2305.18290"),
    ],
)
def test_a_wrong_cell_is_named(edited, column, value, remedy):
    with pytest.raises(DataError) as error:
        catalog.load(edited(column, value))
    assert "'dpo'" in str(error.value) and column in str(error.value) and remedy in str(error.value)


def test_ids_are_unique(edited):
    with pytest.raises(DataError, match="id 'ppo' is there twice"):
        catalog.load(edited("id", "ppo"))


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "catalog.csv"
    pd.read_csv(catalog.CATALOG, dtype=str).drop(columns="phase").to_csv(path, index=False)
    with pytest.raises(DataError, match="phase"):
        catalog.load(path)
    with pytest.raises(DataError, match="nowhere.csv"):
        catalog.load(tmp_path / "nowhere.csv")


def test_query_and_or_and_comparisons():
    table = catalog.load()
    both = catalog.query(["granularity=step", "format=vector|textual"])
    expected = table[(table["granularity"] == "step") & table["format"].isin(["vector", "textual"])]
    assert list(both["id"]) == list(expected["id"]) and len(both)
    assert (catalog.query(["year>=2024", "year<2025"])["year"] == 2024).all()
    assert len(catalog.query(["year<=2023"])) + len(catalog.query("year>2023")) == len(table)
    same = catalog.query({"granularity": "step", "format": ["vector", "textual"]})
    assert list(same["id"]) == list(both["id"])


def test_query_knows_words_no_paper_uses():
    assert catalog.query(["granularity=multi-stage"]).empty


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("grain=step", "granularity"),
        ("granularity=steps", "response, segment, step"),
        ("id=instructgtp", "instructgpt"),
        ("year>=soon", "whole number"),
        ("format>=scalar", "only year and month"),
        ("format", "field=value"),
    ],
)
def test_query_errors_say_what_there_is(condition, told):
    with pytest.raises(AlignkitError, match=told):
        catalog.query([condition])


def test_crosstab_counts_every_paper_once():
    counts = catalog.crosstab("granularity", "optimization")
    assert counts.to_numpy().sum() == len(catalog.load())
    assert list(counts.index)[:4] == ["response", "segment", "step", "token"]  # the taxonomy's order
    recent = catalog.crosstab("format", "expression", ["year>=2025"])
    assert recent.to_numpy().sum() == len(catalog.query("year>=2025"))
    with pytest.raises(AlignkitError, match="title"):
        catalog.crosstab("title", "format")


def test_reading_links_and_prefers_what_is_run_here():
    text = catalog.reading(limit=3, optimization="rl-free", expression="implicit")
    lines = text.splitlines()
    assert lines[0].startswith("- [") and "run in `" in lines[0]  # what is run in the series comes first
    assert sum(line.startswith("- ") for line in lines) == 3
    assert "alignkit catalog 'optimization=rl-free' 'expression=implicit'" in text
    assert text._repr_markdown_() == text


def test_what_the_catalog_says_is_here_is_here():
    table = catalog.load()
    for name in sorted(set(table["implemented_by"]) - {""}):
        pkgutil.resolve_name(name)  # raises if it is not there
    for stem in sorted(set(table["notebook"]) - {""}):
        assert (NOTEBOOKS / f"{stem}.ipynb").is_file(), stem
