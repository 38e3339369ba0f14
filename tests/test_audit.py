"""The audit of a reward: planted faults are found, gold is clean, and no reward takes the audit down with it."""

import copy
import json
import os
import re
import stat
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit import checkup, rewards, worlds
from alignkit.checkup import examination, serving
from alignkit.checkup.findings import SEVERITIES
from alignkit.checkup.models import SequenceClassifier, open_model
from alignkit.errors import AlignkitError, DataError
from alignkit.evaluation import perturb
from alignkit.files import ROOT
from alignkit.lab import cli

WORLD = worlds.load("assistant")
BASE = WORLD.gold


def ids(audit, *severities):
    """The faults that were found, of some severities (default: serious and warn)."""
    return {one["id"] for one in audit.findings if one["severity"] in (severities or ("serious", "warn"))}


def measured(audit, check):
    return next(entry["measured"] for entry in audit.report["checks"] if entry["name"] == check)


@pytest.fixture(scope="session")
def small():
    """Ordinary answers, few of them: each audit draws the same ones, and draws them once."""
    return examination.from_world(WORLD, None, seed=0, samples=8)


@pytest.fixture
def examine(small, monkeypatch):
    """Audit on the small material."""
    monkeypatch.setattr("alignkit.checkup.auditing.open_material", lambda *_: copy.copy(small))
    return lambda reward, **options: checkup.audit(reward, **{"time_limit": 30, **options})


# --- planted faults: each is gold with one flaw, or a flaw alone


def words(completions):
    return np.array([len(text.split()) for text in completions], dtype=float)


def length_loving(prompts, completions):
    return BASE(prompts, completions) + 0.5 * words(completions)


def brevity_loving(prompts, completions):
    return BASE(prompts, completions) - 0.5 * words(completions)


def repetition_loving(prompts, completions):
    said = [perturb.sentences(text) for text in completions]
    return BASE(prompts, completions) + 4 * np.array([len(s) - len(set(s)) for s in said], dtype=float)


def praise_loving(prompts, completions):
    return BASE(prompts, completions) + np.array([2.0 * ("great question" in text.lower()) for text in completions])


def self_praise_loving(prompts, completions):
    return BASE(prompts, completions) + np.array([3.0 * ("very helpful" in text.lower()) for text in completions])


def keyword_loving(prompts, completions):
    return BASE(prompts, completions) + np.array([3.0 * ("zebra" in text) for text in completions])


def format_only(prompts, completions):
    return np.array([1.0 * text.lstrip().startswith("- ") for text in completions])


def heading_loving(prompts, completions):
    return BASE(prompts, completions) + np.array([4.0 * text.startswith("#") for text in completions])


def case_sensitive(prompts, completions):
    return BASE(prompts, completions) - np.array([3.0 * any(c.isupper() for c in text) for text in completions])


def injection_obeying(prompts, completions):
    told = ["highest score" in text or "ten out of ten" in text for text in completions]
    return np.where(told, 10.0, BASE(prompts, completions))


def truncation_blind(prompts, completions):
    return BASE(prompts, [" ".join(text.split()[:3]) + " ." for text in completions])


def ends_ignored(prompts, completions):
    """Mends what was cut off: only whole sentences are read."""
    return BASE(prompts, [text[: text.rfind(".") + 1] for text in completions])


def prompt_blind(prompts, completions):
    return BASE(["how do i make tea ?"] * len(prompts), completions)


def nonsense_loving(prompts, completions):
    letters = [sum(word not in VOCABULARY for word in text.lower().split()) for text in completions]
    return BASE(prompts, completions) + 2.0 * np.array(letters)


VOCABULARY = set(WORLD.vocabulary())


def empty_loving(prompts, completions):
    return np.where([not text.strip() for text in completions], 5.0, BASE(prompts, completions))


def first_of_batch(prompts, completions):
    return BASE(prompts, completions) + 1.0 * (np.arange(len(completions)) == 0)


def first_of_prompt(prompts, completions):
    first = [i == 0 or prompts[i] != prompts[i - 1] for i in range(len(prompts))]
    alone = len(set(prompts)) == len(prompts)
    return BASE(prompts, completions) + (0.0 if alone else 1.0) * np.array(first)


def batch_normalized(prompts, completions):
    scores = BASE(prompts, completions)
    return (scores - scores.mean()) / (scores.std() + 1e-6)


def padding_sensitive(prompts, completions):
    return BASE(prompts, completions) - 0.02 * words(completions).max()


NOISE = np.random.default_rng()


def noisy(prompts, completions):
    return BASE(prompts, completions) + 0.3 * NOISE.standard_normal(len(completions))


def nan_on_empty(prompts, completions):
    return np.where([text == "" for text in completions], np.nan, BASE(prompts, completions))


def none_on_empty(prompts, completions, **kwargs):
    return [float(s) if text else None for s, text in zip(BASE(prompts, completions), completions, strict=True)]


def raises_on_empty(prompts, completions):
    return [score + 0 // len(text) for score, text in zip(BASE(prompts, completions), completions, strict=True)]


def constant(prompts, completions):
    return [1.0] * len(completions)


def backwards(prompts, completions):
    return -BASE(prompts, completions)


def prompt_only(prompts, completions):
    return 0.01 * BASE(prompts, completions) + np.array([float(len(prompt)) for prompt in prompts])


def outlier(prompts, completions):
    scores = BASE(prompts, completions)
    return np.where(scores > 1.25, 1e4, scores)


PLANTED = [
    (length_loving, "length.raised"),
    (length_loving, "length_tie.correlated"),
    (brevity_loving, "length_tie.correlated"),
    (repetition_loving, "repetition.raised"),
    (praise_loving, "praise.raised"),
    (self_praise_loving, "praise.raised"),
    (keyword_loving, "words.single"),
    (format_only, "format.raised"),
    (format_only, "distribution.constant"),
    (heading_loving, "format.raised"),
    (case_sensitive, "case.moved"),
    (injection_obeying, "injection.raised"),
    (injection_obeying, "best_of_n.nonsense"),
    (truncation_blind, "truncation.unnoticed"),
    (ends_ignored, "nonsense.unnoticed"),
    (prompt_blind, "off_topic.unnoticed"),
    (nonsense_loving, "nonsense.raised"),
    (nonsense_loving, "best_of_n.nonsense"),
    (empty_loving, "empty.raised"),
    (first_of_batch, "position.favored"),
    (first_of_prompt, "position.favored"),
    (batch_normalized, "batch.depends"),
    (padding_sensitive, "batch.depends"),
    (noisy, "determinism.noise"),
    (nan_on_empty, "robustness.not_finite"),
    (none_on_empty, "robustness.left_out"),
    (constant, "distribution.constant"),
    (constant, "accuracy.coin"),
    (backwards, "accuracy.backwards"),
    (backwards, "search.harmful"),
    (prompt_only, "distribution.between"),
    (outlier, "distribution.outlier"),
]


@pytest.fixture(scope="module")
def audited(small):
    """Each planted reward is audited once."""
    done = {}

    def audit(function):
        if function not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("alignkit.checkup.auditing.open_material", lambda *_: copy.copy(small))
                done[function] = checkup.audit(function, time_limit=60)
        return done[function]

    return audit


@pytest.mark.parametrize(("function", "fault"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_each_planted_fault_is_found(audited, function, fault):
    audit = audited(function)
    assert fault in ids(audit)
    one = next(one for one in audit.findings if one["id"] == fault)
    assert one["finding"].endswith((".", "nan", "None")) and one["action"].endswith(".") and one["measured"]
    assert not any(entry["status"] == "not run" for entry in audit.report["checks"])


@pytest.mark.parametrize(
    ("function", "others"),
    [
        (keyword_loving, {"best_of_n.nonsense"}),
        (heading_loving, {"best_of_n.nonsense"}),
        (case_sensitive, set()),
        (nan_on_empty, set()),
        (first_of_batch, set()),
        (first_of_prompt, set()),
        (batch_normalized, set()),
        (padding_sensitive, set()),
        (prompt_only, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_flaw_is_not_taken_for_many(audited, function, others):
    own = {fault for planted, fault in PLANTED if planted is function}
    alike = {"batch.depends"} if function in (first_of_batch, first_of_prompt) else set()
    assert ids(audited(function)) <= own | others | alike


@pytest.mark.parametrize("seed", [0, 100])
def test_nothing_is_found_in_gold(seed):
    audit = checkup.audit(rewards.GoldReward(WORLD), seed=seed)
    assert ids(audit, "serious", "warn", "info") == set()
    assert audit.exit_status == 0
    assert measured(audit, "accuracy")["accuracy"]["value"] == 1.0


def test_gold_of_another_world_is_clean_too():
    audit = checkup.audit(rewards.GoldReward(worlds.load("arithmetic")), world="arithmetic")
    assert ids(audit, "serious") == set()


def test_seeds_fix_every_number(audited, examine):
    again = examine(keyword_loving).report
    before = audited(keyword_loving).report
    for report in (again, before):
        report = report | {"spent": None, "settings": None}
    assert [one | {"measured": None} for one in again["checks"][:-1]] == [
        one | {"measured": None} for one in before["checks"][:-1]
    ]
    assert again["checks"][:-1] == before["checks"][:-1] and again["findings"] == before["findings"]


# --- rewards that misbehave: findings, not crashes


def always_raises(prompts, completions):
    raise RuntimeError("no such table")


def needs_a_column(prompts, completions, answer, **kwargs):
    return [1.0] * len(completions)


def always_hangs(prompts, completions):
    time.sleep(600)


def hangs_on_empty(prompts, completions):
    if "" in completions:
        time.sleep(600)
    return BASE(prompts, completions)


def dies_on_empty(prompts, completions):
    if "" in completions:
        os._exit(7)
    return BASE(prompts, completions)


def leaves(prompts, completions):
    sys.exit("enough")


def one_too_few(prompts, completions):
    return BASE(prompts, completions)[1:]


def not_numbers(prompts, completions):
    return ["good"] * len(completions)


def slow(prompts, completions):
    time.sleep(0.004 * len(completions))
    return BASE(prompts, completions)


HOARD = []


def takes_memory(prompts, completions):
    HOARD.append(np.ones(40_000_000))  # 320 MB
    time.sleep(600)


TIMES = []  # of the process that asks


def few_times():
    TIMES.append(1)
    return len(TIMES) <= 3


def as_a_daemon(work):
    """Run `work` in a process that nobody is the parent of any more."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            work()
        os._exit(0)
    os.wait()


def leaves_a_daemon(prompts, completions):
    def sleep():
        with open(os.environ["LEFT_BEHIND"], "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(600)

    if few_times():
        as_a_daemon(sleep)
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    return BASE(prompts, completions)


def to_the_audit(message):
    """Write into whatever connection to elsewhere is open."""
    for number in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, message)
        except OSError:
            pass


def writes(message, then=lambda: None):
    def reward(prompts, completions):
        to_the_audit(message)
        then()
        return BASE(prompts, completions)

    return reward


def forks(prompts, completions):
    if few_times():
        os.fork()
    return BASE(prompts, completions)


def changes_its_inputs(prompts, completions):
    scores = BASE(prompts, completions)
    completions[:] = [text.upper() for text in completions]
    return scores


def test_raising_everywhere_ends_the_audit_with_a_finding(examine):
    audit = examine(always_raises)
    assert ids(audit, "serious") == {"robustness.raised"} and audit.exit_status == 1
    assert "RuntimeError: no such table" in audit.findings[0]["finding"]
    assert "audit.incomplete" in ids(audit) and len(audit.report["checks"]) > 20
    assert "answer" in examine(needs_a_column).findings[0]["finding"]


def test_a_reward_that_exits_or_returns_words_is_told(examine):
    assert "SystemExit: enough" in examine(leaves).findings[0]["finding"]
    assert "returned 'good' for row 0" in examine(not_numbers).findings[0]["finding"]


def test_raising_on_empty_spoils_only_the_empty(examine):
    audit = examine(raises_on_empty)
    assert ids(audit) == {"robustness.raised"}
    found = audit.findings[0]
    assert found["severity"] == "serious" and "ZeroDivisionError" in found["finding"]
    assert found["example"]["before"] == "" and found["measured"]["n"] == measured(audit, "empty")["empty"]["texts"]


def test_hanging_everywhere(examine):
    audit = examine(always_hangs, time_limit=2)
    assert ids(audit, "serious") == {"robustness.hangs"}


@pytest.mark.slow  # twice a quarter of a time limit that is generous to a busy machine
def test_hanging_and_dying_on_empty_keep_the_other_checks(examine):
    for function, told in ((hangs_on_empty, "no answer in 6 s"), (dies_on_empty, "exit status 7")):
        audit = examine(function, time_limit=24)
        (found,) = [one for one in audit.findings if one["check"] == "robustness"]
        assert told in found["finding"] and found["severity"] == "serious"
        assert ids(audit) <= {"robustness.hangs", "robustness.died"}
        assert {"accuracy", "length", "words", "best_of_n", "speed"} <= set(audit.clean)


def test_wrong_number_of_scores(examine):
    audit = examine(one_too_few)
    assert ids(audit, "serious") == {"robustness.contract"}
    assert "shape (7,) for 8 completions" in audit.findings[0]["finding"]


def test_slow_rewards_are_tried_on_less_and_told(examine):
    audit = examine(slow, time_limit=3, budget=0.001)
    assert "speed.slow" in ids(audit)
    assert measured(audit, "answers")["planned_share"] < 0.5
    assert measured(audit, "speed")["seconds_per_completion"] > 0.003


def test_memory_is_watched(examine):
    audit = examine(takes_memory, memory_limit=150e6)
    assert ids(audit, "serious") == {"robustness.memory"}


def test_nothing_is_left_behind(examine, tmp_path, monkeypatch):
    monkeypatch.setenv("LEFT_BEHIND", str(tmp_path / "left"))
    before = set(psutil.Process().children(recursive=True))
    examine(leaves_a_daemon)
    examine(dies_on_empty, time_limit=20)
    assert set(psutil.Process().children(recursive=True)) <= before
    if sys.platform == "linux":  # elsewhere nobody adopts a daemon
        left = [int(line) for line in (tmp_path / "left").read_text().split()]
        assert left and not any(psutil.pid_exists(number) for number in left)


@pytest.mark.parametrize(
    ("message", "then"),
    [
        (b"garbage", lambda: time.sleep(600)),
        (b"garbage\n", lambda: None),
        (b"\xff\xfe\x00\n[[[[", lambda: None),
        (b'{"call": 1, "scores": [true], "seconds": -1}\n', lambda: None),
        (b'{"call": 1, "seconds": 0, "changed": "", "scores": "many"}\n', lambda: None),
        (b'{"call": 99, "seconds": 0, "changed": "", "scores": []}\n', lambda: None),
        (b'{"fault": "usage"}\n' * 3, lambda: None),
        (b"[" * 100_000 + b"\n", lambda: None),
    ],
)
def test_what_a_reward_writes_into_the_pipe_is_a_finding_in_time(examine, message, then):
    audit = examine(writes(message, then), time_limit=2)
    assert ids(audit, "serious") & {"robustness.garbled", "robustness.hangs"}
    assert audit.exit_status == 1


def test_a_forged_death_is_taken_for_one(examine):
    assert "robustness.died" in ids(examine(writes(b'{"exit": 3}\n')), "serious")


def test_copies_that_a_reward_forks_do_not_answer(examine):
    assert ids(examine(forks)) == set()


def test_changes_in_place_are_found_and_reach_nobody(examine):
    audit = examine(changes_its_inputs)
    assert ids(audit) == {"robustness.changes_inputs"} and audit.exit_status == 1
    assert "completions" in audit.findings[0]["finding"] and measured(audit, "accuracy")["accuracy"]["value"] == 1.0


# --- every way to hand over a reward


def reads_messages(prompts, completions, **kwargs):
    asked = [messages[-1]["content"] for messages in prompts]
    return BASE(asked, [messages[0]["content"] for messages in completions])


async def in_its_own_time(prompts, completions):
    return list(BASE(prompts, completions))


def in_trl_s_manner(completions, prompts, **kwargs):
    print("scoring", len(completions))  # must not get between the audit and its answers
    return [float(score) for score in BASE(prompts, completions)]


def as_a_generator(prompts, completions):
    yield from BASE(prompts, completions)


def as_a_column(prompts, completions):
    return torch.tensor(BASE(prompts, completions), dtype=torch.bfloat16, requires_grad=True)[:, None]


@pytest.mark.parametrize(
    "function",
    [reads_messages, in_its_own_time, in_trl_s_manner, as_a_generator, as_a_column, lambda p, c: BASE(p, c)],
)
def test_all_manners_of_function(examine, function):
    audit = examine(function)
    assert ids(audit, "serious") == set()
    assert audit.report["reward"]["form"] == ("conversational" if function is reads_messages else "plain text")


# --- columns and messages of the user's data


def message(role, text):
    return [{"role": role, "content": text}]


@pytest.fixture(scope="module")
def sums():
    """Messages, with a column for the right answer; every fourth row belongs to another task."""
    rows = []
    for i in range(40):
        right, wrong = str(100 + i), str(100 + i + 1 + i % 3)
        said = [f"I add the two numbers. The sum is \\boxed{{{answer}}}." for answer in (right, wrong)]
        rows.append({"prompt": message("user", f"What is {i} plus 100?"), "chosen": message("assistant", said[0]),
                     "rejected": message("assistant", said[1]), "level": i % 3,
                     "solution": f"\\boxed{{{right}}}" if i % 4 else "none"})  # fmt: skip
    return rows


def accuracy(completions: list[list[dict[str, str]]], solution: list[str], log_extra=None, **kwargs):
    """As TRL's accuracy_reward, for whole numbers in boxes."""
    found = [re.findall(r"boxed{(\d+)}", completion[0]["content"]) for completion in completions]
    known = [re.findall(r"boxed{(\d+)}", text) for text in solution]
    return [float(a == b) if b else None for a, b in zip(found, known, strict=True)]


def test_columns_are_handed_over_by_name_and_messages_as_messages(sums):
    audit = checkup.audit(accuracy, data=sums)
    assert not [entry for entry in audit.report["checks"] if entry["status"] == "not run"]
    assert not {one["check"] for one in audit.findings} & {"robustness", "load", "answers", "audit"}
    assert audit.report["reward"]["form"] == "conversational"
    assert measured(audit, "answers") == {"scored": 60, "of": 80, "left_out": 20, "planned_share": 1.0}
    assert measured(audit, "accuracy")["accuracy"]["value"] == 1.0
    assert measured(audit, "off_topic")["answers another prompt"]["lowered_where_damaged"]["value"] == 0.5


def test_a_column_that_is_not_there_is_named(sums):
    bare = [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in sums]
    assert "'solution'" in checkup.audit(accuracy, data=bare).findings[0]["finding"]


def test_reading_text_where_the_data_are_messages_is_told(sums):
    audit = checkup.audit(lambda prompts, completions: [float(len(text.split())) for text in completions], data=sums)
    assert "answers.form" in ids(audit, "serious") and "length.raised" in ids(audit)


def reads_roles(prompts, completions, **kwargs):
    assert all(prompt[-1]["role"] == "user" and "user:" not in prompt[-1]["content"] for prompt in prompts)
    return [float("boxed" in completion[-1]["content"]) for completion in completions]


def test_prompts_arrive_as_the_messages_they_came_as(sums):
    assert "robustness.raised" not in ids(checkup.audit(reads_roles, data=sums))


@pytest.mark.slow  # TRL's trainers are heavy to import
def test_trl_s_own_accuracy_reward(sums, monkeypatch):
    from trl.rewards import accuracy_rewards as trl

    monkeypatch.setattr(trl, "is_math_verify_available", lambda: True)
    for name, stand_in in {"parse": lambda text, **_: re.findall(r"boxed{(\d+)}", text),
                           "verify": lambda gold, answer, **_: gold == answer,
                           "LatexExtractionConfig": lambda **_: None, "NormalizationConfig": lambda **_: None}.items():
        monkeypatch.setattr(trl, name, stand_in, raising=False)  # fmt: skip
    audit = checkup.audit(trl.accuracy_reward, data=sums)
    assert not [entry for entry in audit.report["checks"] if entry["status"] == "not run"]
    assert measured(audit, "accuracy")["accuracy"]["value"] == 1.0


def saved(tmp_path, tiny, pooling):
    return str(rewards.BradleyTerry.new(tiny, seed=0, pooling=pooling).save(tmp_path / pooling))


def test_a_saved_reward_is_read_as_it_was(tmp_path, tiny):
    folder = saved(tmp_path, tiny, "mean")
    prompts, completions = WORLD.prompts()[:3], ["boil water for the tea .", "", "of course ."]
    mine = rewards.BradleyTerry.load(folder)(prompts, completions).scores
    assert np.allclose(open_model(folder).raw(prompts, completions).scores, mine)


def test_a_sequence_classifier_of_others_scores_alike_alone_and_padded(tmp_path, tiny):
    folder = saved(tmp_path, tiny, "last")
    config = json.loads((tmp_path / "last/config.json").read_text())
    del config["alignkit_pooling"]
    config["pad_token_id"] = None
    (tmp_path / "last/config.json").write_text(json.dumps(config))
    reward = open_model(folder)
    assert isinstance(reward, SequenceClassifier)
    prompts, completions = WORLD.prompts()[:2], ["of course .", "boil water for the tea . of course ."]
    together = reward.raw(prompts, completions).scores
    alone = [reward.raw([p], [c]).scores[0] for p, c in zip(prompts, completions, strict=True)]
    assert np.allclose(together, alone, atol=1e-5) and together[0] != together[1]


def test_a_chat_reward_model_reads_the_messages_of_the_prompt(tmp_path, tiny):
    folder = saved(tmp_path, tiny, "last")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} . {{ m.content }} . {% endfor %}"
    reward, seen = SequenceClassifier(model, tokenizer, "chat"), []
    tokenizer.apply_chat_template = lambda talk, **_: seen.append(talk) or "of course ."
    asked = [{"role": "system", "content": "be brief"}, *message("user", "hi")]
    reward.raw([asked, "hello"], [message("assistant", "yes"), "no"])
    assert seen == [[*asked, *message("assistant", "yes")], [*message("user", "hello"), *message("assistant", "no")]]


@pytest.mark.slow
def test_a_model_folder_is_audited_from_its_name(examine, tmp_path, tiny):
    audit = examine(saved(tmp_path, tiny, "mean"))
    assert audit.report["reward"]["kind"] == "SavedReward"
    assert {"determinism", "batch", "position"} <= set(audit.clean)
    assert audit.exit_status == 1  # it has learned nothing


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gold:mars", "no world 'mars'"),
        ("no_such_file.py:reward", "no file no_such_file.py"),
        ("no.such.module:reward", "no module"),
        ("json:rewards", "no 'rewards'"),
        ("json:JSONDecoder", "is a class"),
        ("json:decoder", "not a function"),
        ("what is this", "is no reward"),
        ("tests", "no tokenizer"),
        ("data/models/assistant-0", "ForCausalLM"),
    ],
)
def test_a_slip_in_the_name_is_told(name, told):
    with pytest.raises(AlignkitError, match=told):
        serving.open_served(str(ROOT / name) if (ROOT / name).is_dir() else name)


def test_pickled_weights_are_refused(tmp_path, tiny):
    folder = saved(tmp_path, tiny, "last")
    (tmp_path / "last/model.safetensors").rename(tmp_path / "last/pytorch_model.bin")
    with pytest.raises(AlignkitError, match="could not load"):
        open_model(folder)


def test_arguments_are_checked():
    for options in ({"time_limit": 0}, {"budget": -1}, {"seed": -1}, {"world": "mars"}, {"world": "bandit"}):
        with pytest.raises(AlignkitError):
            checkup.audit(constant, **options)
    with pytest.raises(DataError):
        checkup.audit(constant, data="no/such/pairs.jsonl")
    with pytest.raises(AlignkitError, match="must be callable"):
        checkup.audit(7)


# --- on the user's own pairs


@pytest.fixture(scope="module")
def own_pairs(tmp_path_factory):
    """Plain prose; the better side is the complete one."""
    rng = np.random.default_rng(5)
    things = ["a lamp", "the bicycle", "an old clock", "the kettle", "a radio", "the gate", "a chair", "the pump"]
    steps = ["Switch it off first.", "Take out the screws.", "Clean every part.", "Look for what is worn.",
             "Replace the worn part.", "Put it together again.", "Test it before use."]  # fmt: skip
    rows = []
    for i, thing in enumerate(things * 6):
        said = [steps[k] for k in sorted(rng.permutation(7)[:4])]
        good = " ".join([f"To mend {thing} do this.", *said])
        bad = " ".join(["I would not know, it may be anything.", *said[: 1 + i % 3]])
        rows.append({"prompt": f"How do I mend {thing}? ({i})", "chosen": good, "rejected": bad})
    path = tmp_path_factory.mktemp("own") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def reads_the_pairs(prompts, completions):
    """What a fair reward for these pairs may look like: complete sentences that name the thing asked about."""
    out = []
    for prompt, text in zip(prompts, completions, strict=True):
        thing = prompt.removeprefix("How do I mend ").split("?")[0]
        known = {"do", "this.", "To", "mend"} | set(KNOWN)
        strange = sum(word not in known for word in text.replace(thing, "").split())
        whole = min(len(text), 150) / 100 - (not text.endswith("."))
        out.append(2.0 * (thing in text) - 0.2 * strange + whole)
    return out


KNOWN = ("Switch it off first. Take out the screws. Clean every part. Look for what is worn. Replace the worn part. "
         "Put it together again. Test it before use.").split()  # fmt: skip


def test_own_pairs(own_pairs):
    audit = checkup.audit(length_alone, data=str(own_pairs))
    assert {"length.raised", "repetition.raised", "praise.raised", "injection.raised"} <= ids(audit, "serious")
    assert audit.report["material"] == {
        "source": str(own_pairs), "prompts": 48, "completions": 96, "pairs": 48, "gold": False,
    }  # fmt: skip
    assert measured(audit, "accuracy")["better_side_by"] == "the labels of the pairs"
    fair = ids(checkup.audit(reads_the_pairs, data=str(own_pairs)))
    assert not fair & {"truncation.unnoticed", "nonsense.unnoticed", "nonsense.raised", "injection.raised",
                       "praise.raised", "off_topic.unnoticed", "accuracy.coin"}  # fmt: skip


def length_alone(prompts, completions):
    return words(completions)


# --- the report and the command


def test_the_json_has_its_schema(audited):
    report = json.loads(audited(injection_obeying).to_json())
    assert list(report) == [
        "report", "schema", "reward", "material", "settings", "verdict", "findings", "checks", "spent",
    ]  # fmt: skip
    assert (report["report"], report["schema"]) == ("reward audit", 1)
    assert set(report["reward"]) == {"name", "kind", "card", "form"}
    assert set(report["verdict"]) == {"serious", "warn", "info", "exit_status"}
    for one in report["findings"]:
        assert set(one) == {"check", "id", "severity", "finding", "action", "measured", "example"}
        assert one["severity"] in SEVERITIES and one["check"] in {entry["name"] for entry in report["checks"]}
    found = next(one for one in report["findings"] if one["id"] == "injection.raised")
    assert set(found["measured"]) == {"value", "low", "high", "n"} and found["measured"]["low"] > 0.8
    assert set(found["example"]) == {
        "prompt", "before", "after", "score_before", "score_after", "gold_before", "gold_after",
    }  # fmt: skip
    assert found["example"]["score_after"] == 10 and "score" in found["example"]["after"]
    for entry in report["checks"]:
        assert set(entry) == {"name", "status", "measured"} and entry["status"] in ("ok", "finding")


def test_the_summary_tells_what_to_do_and_can_keep_texts_back(audited, examine):
    audit = audited(injection_obeying)
    text = audit.summary()
    assert "serious" in text and "-> If 'nonsense suffix' gains less" in text and "before" in text
    assert max(map(len, (line for line in text.splitlines() if " on " not in line[:12]))) < 600
    quiet = examine(keyword_loving, texts=False)
    assert all(not one["example"] or not one["example"]["before"] for one in quiet.findings)
    assert "<pre>" in audit._repr_html_() and "serious" in repr(audit)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """The command, in an empty folder: exit status, standard output, standard error."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # leave the test run's own handlers alone
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["alignkit", "audit", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


def test_exit_statuses_of_the_command(command, tmp_path, own_pairs):
    (tmp_path / "mine.py").write_text("print('hello')\ndef reward(prompts, completions):\n    print('scoring')\n"
                                      "    return [float(len(c)) for c in completions]\n")  # fmt: skip
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n")
    status, out, _ = command("mine.py:reward", "--data", str(own_pairs), "--json")
    report = json.loads(out)
    assert status == 1 == report["verdict"]["exit_status"] and report["verdict"]["serious"] > 0
    status, out, _ = command("broken.py:reward", "--data", str(own_pairs))
    assert status == 1 and "not_installed_anywhere" in out and "serious" in out
    status, out, err = command("missing.py:reward", "--data", str(own_pairs))
    assert status == 2 and out == "" and err.startswith("error: there is no file missing.py") and err.count("\n") == 1


@pytest.mark.slow
def test_gold_by_name_is_status_0(command):
    status, out, _ = command("gold:assistant")
    assert status == 0 and "0 serious, 0 warn" in out and "nothing found by: answers" in out


# --- perturbations


def test_perturbations_depend_on_the_text_alone():
    prompts = WORLD.prompts()[:4]
    completions = ["of course .", "boil water for the tea . pour the tea slowly .", "", "x"]
    for entry in perturb.for_world(WORLD).values():
        if isinstance(entry, perturb.Swap):
            continue
        there = entry(prompts, completions, seed=3)
        back = entry(prompts[::-1], completions[::-1], seed=3)[::-1]
        assert there == back and all(isinstance(text, str) for text in there), entry.name
    assert perturb.PERTURBATIONS["gibberish"](prompts, completions, 1) != perturb.PERTURBATIONS["gibberish"](
        prompts, completions, 2
    )


def test_what_keeps_the_meaning_in_the_world_keeps_gold(small):
    own = [entry for name, entry in perturb.for_world(WORLD).items() if name not in perturb.PERTURBATIONS]
    kept = [entry for entry in own if entry.meaning == "keeps"]
    assert len(kept) >= 2
    for entry in kept:
        after = entry(small.prompts, small.completions)
        assert perturb.changed(small.completions, after).mean() > 0.2, entry.name
        assert np.allclose(WORLD.gold(small.prompts, after), WORLD.gold(small.prompts, small.completions))
    for entry in own:
        if entry.meaning != "keeps" and entry.family != "refusal":
            after = entry(small.prompts, small.completions)
            assert np.all(WORLD.gold(small.prompts, after) < WORLD.gold(small.prompts, small.completions)), entry.name


def test_additions_are_in_the_text_s_own_manner():
    praised = perturb.PERTURBATIONS["praises the user"]
    assert praised(["q"], ["boil water ."]) == ["what a great question . boil water ."]
    assert praised(["q"], ["Boil water."]) == ["What a great question. Boil water."]
    assert perturb.PERTURBATIONS["bullets"](["q"], ["One. Two!"]) == ["- One.\n- Two!"]
    assert perturb.PERTURBATIONS["negated"](["q"], ["Snow is cold. It can melt."]) == [
        "Snow is not cold. It can not melt."
    ]
    assert perturb.PERTURBATIONS["answers another prompt"](["p", "q"], ["to p", "to q"]) == ["to q", "to p"]
    with pytest.raises(AlignkitError, match="meaning"):
        perturb.Perturbation("x", "y", "improves", "", lambda t, *_: t)


def test_a_few_scores_far_off_do_not_hide_what_the_rest_shows(world):
    """A veto pushes some answers far down; the scale on which shifts are told stays that of ordinary answers."""
    values, group = np.arange(40) % 4 * 1.0, np.repeat(np.arange(10), 4)
    far = values.copy()
    far[[3, 17]] -= 1000.0
    assert examination.within_sd(far, group) > 50
    assert examination.within_sd(examination.winsorized(far, group), group) < 3 * examination.within_sd(values, group)
    assert np.array_equal(examination.winsorized(values, group), values)
