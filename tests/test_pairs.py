"""Reading preference data: every format and layout, and everything that can be wrong with a file or a row."""

import csv
import gzip
import io
import json
import os

import datasets
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from alignkit.checkup import sources
from alignkit.checkup.pairs import read_pairs
from alignkit.errors import DataError

ROWS = [{"prompt": f"Question {i}?", "chosen": f"Good answer {i}", "rejected": f"Bad answer {i}"} for i in range(6)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_jsonl_gz(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


WRITERS = {
    "pairs.jsonl": write_jsonl,
    "pairs.jsonl.gz": write_jsonl_gz,
    "pairs.json": write_json,
    "pairs.csv": write_csv,
    "pairs.parquet": write_parquet,
}


def texts(pairs):
    columns = ["prompt", "chosen", "rejected"]
    return pairs.frame[columns].to_dict("records")


def dialogue(*turns):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def messages(*turns):
    names = ("user", "assistant")
    return [{"role": names[i % 2], "content": turn} for i, turn in enumerate(turns)]


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_gives_the_same_pairs(tmp_path, name):
    pairs = read_pairs(WRITERS[name](tmp_path / name, ROWS))
    assert texts(pairs) == ROWS
    assert pairs.frame["row"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (pairs.rows_read, pairs.rejected, pairs.damage) == (6, {}, [])


def test_data_set_in_memory_and_saved_to_disk(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "saved")
    assert texts(read_pairs(table)) == ROWS
    assert texts(read_pairs(tmp_path / "saved")) == ROWS


def test_splits_of_a_saved_data_set(tmp_path):
    parts = {"train": datasets.Dataset.from_list(ROWS[:4]), "test": datasets.Dataset.from_list(ROWS[4:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert texts(read_pairs(tmp_path / "saved")) == ROWS[:4]
    assert texts(read_pairs(tmp_path / "saved", split="test")) == ROWS[4:]
    assert "'train' of: train, test" in read_pairs(tmp_path / "saved").notes[0]
    with pytest.raises(DataError, match="no split 'dev'.*train, test"):
        read_pairs(tmp_path / "saved", split="dev")


def test_splits_without_train_must_be_named():
    parts = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("a", "b")})
    with pytest.raises(DataError, match="Its splits are: a, b"):
        read_pairs(parts)
    assert len(read_pairs(parts, split="b")) == 6


def test_directory_of_files_reads_all_and_names_the_file_of_a_row(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    write_jsonl_gz(tmp_path / "b.jsonl.gz", ROWS[2:])
    write_json(tmp_path / "dataset_infos.json", {"not": "pairs"})
    pairs = read_pairs(tmp_path)
    assert texts(pairs) == ROWS
    assert pairs.frame["row"].tolist()[1:4] == ["a.jsonl:2", "b.jsonl.gz:1", "b.jsonl.gz:2"]
    assert texts(read_pairs(tmp_path, split="b")) == ROWS[2:]
    assert texts(read_pairs(tmp_path, limit=3)) == ROWS[:3]


def test_hub_path_reads_what_the_library_loads(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", ROWS)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    load = datasets.load_dataset

    def load_local(name, *arguments, **options):
        assert (name, arguments, options) == ("someone/pairs", (), {})  # above all, no trust_remote_code
        return load(str(tmp_path / "set"))

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    pairs = read_pairs("someone/pairs")
    assert texts(pairs) == ROWS
    assert pairs.source == "someone/pairs"


def test_hub_failure_is_one_clear_message(monkeypatch):
    def fail(name):
        raise ConnectionError("no route to host\nlong traceback")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"someone/pairs: no such file.*no route to host.*local path") as caught:
        read_pairs("someone/pairs")
    assert "long traceback" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "no/such/place", "../no such folder", "some where"])
def test_missing_path_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(sources, "load_from_hub", lambda name: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match="no such file or directory"):
        read_pairs(name)


def test_limit_counts_rows_read(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "no sides"}, *ROWS])
    pairs = read_pairs(path, limit=3)
    assert (pairs.rows_read, len(pairs), pairs.rejected) == (3, 2, {"no column chosen": [1]})
    assert pairs.notes == ["only the first 3 rows were read"]
    with pytest.raises(DataError, match="limit is 0"):
        read_pairs(path, limit=0)


# --- layouts ------------------------------------------------------------------------------------


def one_pair(tmp_path, row):
    return read_pairs(write_jsonl(tmp_path / "one.jsonl", [row])).frame.iloc[0]


def test_dialogue_shares_the_prefix_up_to_the_last_answer(tmp_path):
    row = {
        "chosen": dialogue("hi", "hello", "a or b?", "a it is"),
        "rejected": dialogue("hi", "hello", "a or b?", "a"),
    }
    pair = one_pair(tmp_path, row)
    assert (pair.chosen, pair.rejected, pair.turns, pair.prompt_match) == ("a it is", "a", 2, "same")
    assert pair.prompt == "Human: hi\n\nAssistant: hello\n\nHuman: a or b?"


def test_identical_dialogues_keep_their_answer(tmp_path):
    pair = one_pair(tmp_path, {"chosen": dialogue("hi", "yes"), "rejected": dialogue("hi", "yes")})
    assert (pair.chosen, pair.rejected, pair.prompt_match) == ("yes", "yes", "same")


def test_dialogues_that_part_early_or_share_nothing(tmp_path):
    early = {"chosen": dialogue("hi", "x", "why?", "so"), "rejected": dialogue("hi", "y")}
    pair = one_pair(tmp_path, early)
    assert (pair.prompt, pair.prompt_match, pair.turns) == ("Human: hi", "diverges", 1)
    apart = {"chosen": dialogue("one", "x"), "rejected": dialogue("two", "y")}
    pair = one_pair(tmp_path, apart)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Human: one", "x", "y")
    assert pair.prompt_match == "different"


def test_prompt_column_that_the_dialogues_do_not_answer(tmp_path):
    sides = {"chosen": dialogue("hi", "x"), "rejected": dialogue("hi", "y")}
    assert one_pair(tmp_path, {"prompt": "hi", **sides}).prompt_match == "same"
    assert one_pair(tmp_path, {"prompt": "something else", **sides}).prompt_match == "different"


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_message_lists_share_their_leading_messages(tmp_path, write):
    row = {"chosen": messages("hi", "hello", "go", "gone"), "rejected": messages("hi", "hello", "go", "no")}
    suffix = "jsonl" if write is write_jsonl else "parquet"
    pair = read_pairs(write(tmp_path / f"pairs.{suffix}", [row])).frame.iloc[0]
    assert pair.prompt == "user: hi\n\nassistant: hello\n\nuser: go"
    assert (pair.chosen, pair.rejected, pair.turns, pair.prompt_match) == ("gone", "no", 2, "same")


def test_message_lists_with_a_prompt(tmp_path):
    answers = {"chosen": messages("hi", "yes")[1:], "rejected": messages("hi", "no")[1:]}
    as_text = one_pair(tmp_path, {"prompt": "hi", **answers})
    as_list = one_pair(tmp_path, {"prompt": messages("hi"), **answers})
    assert as_text.prompt == as_list.prompt == "user: hi"
    assert (as_text.prompt_match, as_list.prompt_match) == ("by_column", "same")
    whole = {"chosen": messages("hi", "yes"), "rejected": messages("hi", "no")}
    assert one_pair(tmp_path, {"prompt": "hi", **whole}).prompt_match == "same"
    assert one_pair(tmp_path, {"prompt": "other", **whole}).prompt_match == "different"
    early = {"chosen": messages("hi", "x", "why", "so"), "rejected": messages("hi", "y")}
    assert one_pair(tmp_path, early).prompt_match == "diverges"


def test_rows_and_tables_in_memory_are_taken():
    assert texts(read_pairs(ROWS)) == texts(read_pairs(pd.DataFrame(ROWS))) == ROWS


def test_messages_and_other_columns_are_kept_as_they_came():
    tool = {"role": "assistant", "content": "yes", "tool_calls": [{"name": "look"}]}
    row = {"chosen": [*messages("hi"), tool], "rejected": messages("hi", " no "), "level": 3, "tags": ["a"]}
    pairs = read_pairs([row, {**row, "prompt": messages("hi"), "chosen": [tool], "rejected": messages("hi", "no")[1:]}])
    assert pairs.columns == [{"level": 3, "tags": ["a"]}] * 2
    prompt, chosen, rejected = pairs.frame["messages"][0]
    assert (prompt, chosen, rejected) == (messages("hi"), [tool], messages("hi", " no ")[1:])
    assert pairs.frame["messages"][1][:2] == (messages("hi"), [tool])
    plain = {"prompt": "hi", "chosen": [tool], "rejected": messages("hi", "no")[1:]}
    assert read_pairs([plain]).frame["messages"][0][0] == messages("hi")
    assert read_pairs(ROWS).frame["messages"].isna().all()


# --- broken rows: counted with their reason, and reading goes on --------------------------------

PLAIN = {"prompt": "p", "chosen": "c", "rejected": "r"}
BROKEN_ROWS = [
    ({**PLAIN, "chosen": None}, "chosen is null"),
    ({**PLAIN, "rejected": 3}, "rejected is a number, not text or a message list"),
    ({**PLAIN, "chosen": True}, "chosen is true, not text or a message list"),
    ({**PLAIN, "prompt": {"a": 1}}, "prompt is an object, not text or a message list"),
    ({"prompt": "p", "chosen": "c"}, "no column rejected"),
    ({**PLAIN, "chosen": messages("hi", "yes")}, "one side is text, the other a message list"),
    (
        {**PLAIN, "prompt": None},
        "no prompt: no prompt column, and the sides are not Human/Assistant dialogues",
    ),
    ({"chosen": [], "rejected": []}, "chosen is an empty message list"),
    (
        {"chosen": [{"role": "user"}], "rejected": messages("a", "b")},
        "chosen holds a message without role and text",
    ),
    (
        {"chosen": messages("a"), "rejected": messages("a", "b")},
        "a side's last message is not the assistant's",
    ),
    (
        {"chosen": messages("", "b")[1:], "rejected": messages("", "c")[1:]},
        "no prompt: no prompt column, and the sides hold no message before the answer",
    ),
    ([1, 2], "a list instead of an object with columns"),
    ({**PLAIN, "chosen": "\ud800"}, "not UTF-8 text"),
]


@pytest.mark.parametrize("bad, reason", BROKEN_ROWS)
def test_broken_row_is_counted_and_reading_goes_on(tmp_path, bad, reason):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0], bad, ROWS[1], bad]))
    pairs = read_pairs(path)
    assert texts(pairs) == ROWS[:2]
    assert pairs.rejected == {reason: [2, 4]}


def test_half_a_line_blank_lines_and_bad_bytes(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(row).encode() for row in ROWS]
    path.write_bytes(b"\n".join([lines[0], b"", b'{"prompt": "\xff"}', lines[1], lines[2][:20]]))
    pairs = read_pairs(path)
    assert texts(pairs) == ROWS[:2]
    assert pairs.rejected == {
        "not UTF-8 text": [3],
        "not valid JSON (half a line?)": [5],
    }


def test_csv_with_a_short_row_and_bad_bytes(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"prompt,chosen,rejected\np,c\np,\xff,r\np,c,r,more\np,c,r\n")
    pairs = read_pairs(path)
    assert len(pairs) == 1
    assert pairs.rejected == {
        "wrong number of fields": [1, 3],
        "not UTF-8 text": [2],
    }


def test_truncated_gzip_keeps_the_rows_before_the_damage(tmp_path):
    rows = [{**PLAIN, "chosen": f"{i * 7919 % 100003} {i**3}"} for i in range(4000)]
    path = write_jsonl_gz(tmp_path / "pairs.jsonl.gz", rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pairs = read_pairs(path)
    assert 1000 < len(pairs) < 3000
    assert texts(pairs) == rows[: len(pairs)]
    assert f"damaged after row {len(pairs)}" in pairs.damage[0]


# --- broken files: one message ------------------------------------------------------------------


def broken_file(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name, content, found",
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        (
            "a.jsonl",
            b'{"question": "q", "answer": "a"}\n',
            "row 1: no column chosen. Columns found: question, answer",
        ),
        ("a.jsonl", b"no json at all\n", "row 1: not valid JSON"),
        ("a.jsonl.gz", b"not a gzip", "yields no usable pair"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:15], "damaged after row 0"),
        ("a.json", b'{"chosen": ["a"]}', "an object with the keys chosen"),
        ("a.json", b'[{"chosen": "a"', "not valid JSON .* line 1"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b"[" * 100_000, "not valid JSON .*RecursionError"),
        (
            "a.csv",
            b"question,answer\nq,a\n",
            "row 1: no column chosen. Columns found: question, answer",
        ),
        ("a.csv", b"prompt,chosen,rejected\n", "holds no rows"),
        ("a.parquet", b"PAR1 nothing", "damaged after row 0"),
        ("a.txt", b"text", "unknown format"),
    ],
)
def test_broken_file_raises_one_clear_error(tmp_path, name, content, found):
    path = broken_file(tmp_path / name, content)
    with pytest.raises(DataError, match=found) as caught:
        read_pairs(path)
    assert str(path) in str(caught.value)


def test_wrong_columns_in_one_file_of_a_directory_name_that_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_csv(tmp_path / "b.csv", [{"question": "q"}])
    with pytest.raises(DataError, match="b.csv yields no usable pair.*no column chosen"):
        read_pairs(tmp_path)


def test_empty_directory_and_things_that_are_no_source(tmp_path):
    with pytest.raises(DataError, match="holds no data file"):
        read_pairs(tmp_path)
    with pytest.raises(DataError, match="not a source of pairs"):
        read_pairs([1, 2])
    with pytest.raises(DataError, match="no column chosen"):
        read_pairs(datasets.Dataset.from_list([{"text": "a"}]))


@pytest.mark.parametrize("name", ["", "x" * 5000, "a/" * 3000, "no\0name"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(DataError) as caught:
        read_pairs(name)
    assert len(str(caught.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    (tmp_path / "shut").mkdir()
    write_jsonl(tmp_path / "shut.jsonl", ROWS)
    for path in (tmp_path / "shut", tmp_path / "shut.jsonl"):
        path.chmod(0)
        with pytest.raises(DataError, match="can't be read: Permission denied"):
            read_pairs(path)
        path.chmod(0o700)


def test_a_file_that_fails_while_it_is_read(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def readline(self, *_):
            raise OSError(5, "Input/output error")

    path = write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    monkeypatch.setattr("builtins.open", lambda *_, **__: Failing())
    with pytest.raises(DataError, match="can't be read: Input/output error"):
        read_pairs(path)


def test_values_that_parquet_holds_and_python_does_not(tmp_path):
    bad = pyarrow.array([b"fine", b"\xff\xfe", b"good"]).cast(pyarrow.string(), safe=False)
    texts_ = pyarrow.array(["a", "b", "c"])
    far = pyarrow.array([2**60, 0, 0], pyarrow.timestamp("ms"))
    table = pyarrow.table({"prompt": texts_, "chosen": bad, "rejected": texts_, "when": far})
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    pairs = read_pairs(tmp_path / "pairs.parquet")
    assert pairs.frame["chosen"].tolist() == ["fine", "good"]
    assert pairs.rejected == {"not UTF-8 text": [2]}
    assert pairs.columns[0] == {"when": None}


def test_one_line_without_an_end_is_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() + b"\n" + b"[" * 10_000))
    assert "damaged after row 1" in read_pairs(path).damage[0]
