"""Rewards: what each says, which failures are named, and that nothing a model writes is run here."""

import math
import sys
import threading
import time

import pytest
from small_sft import small_tokenizer

from llmfast.alignment.rewards.build import BY_NAME, RewardError, Rewards, check_weights
from llmfast.data.config import PromptDataConfig
from llmfast.data.examples.gym import gym_records
from llmfast.data.examples.prompts import open_prompts, prepare_prompts
from llmfast.evaluation.answers.calculator import calculate
from llmfast.evaluation.answers.sandbox import code_of, run_limited
from llmfast.evaluation.answers.texts import final_answer


def reward(name, text, answer=None, tokens=(1, 2)):
    return BY_NAME[name]("the prompt", list(tokens), text, answer)


@pytest.mark.parametrize(
    ("name", "text", "answer", "wanted"),
    [
        ("exact", " 12 \n", "12", 1.0),
        ("exact", "so 3 + 9 = 12\n#### 12", "3 + 9\n#### 12", 1.0),
        ("exact", "<think>3 + 9</think><answer>12</answer>", "12", 1.0),
        ("exact", "13", "12", 0.0),
        ("number", "It is $1,200.0.", "#### 1200", 1.0),
        ("number", "#### -3", "-3", 1.0),
        ("number", "no number", "7", 0.0),
        ("number", "7 or 8", "7", 0.0),
        ("position_match", "1245", "1243", 0.75),
        ("position_match", "12433", "1243", 0.0),
        ("position_match", "", "1243", 0.0),
        ("think_format", "<think>a\nb</think>\n<answer>c</answer>", None, 1.0),
        ("think_format", "well <think>a</think><answer>c</answer>", None, 0.0),
        ("think_format", "<think>a</think>", None, 0.0),
        ("brevity", "x", None, 1 / 3),
    ],
)
def test_rewards_by_hand(name, text, answer, wanted):
    assert reward(name, text, answer) == pytest.approx(wanted)


def test_final_answers():
    assert final_answer("a #### 1 #### 2") == "2"
    assert final_answer("<answer>x") == "x"
    assert final_answer("  plain ") == "plain"


def test_mathematical_equality_also_outside_the_main_thread():
    """Trap: math-verify's time limit is a signal, which only the main thread can set."""
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    found = []
    thread = threading.Thread(
        target=lambda: found.append((reward("math", r"\frac{1}{2}", "0.5"), reward("math", "3", "4")))
    )
    thread.start()
    thread.join()
    assert found == [(1.0, 0.0)]


# --- environments ----------------------------------------------------------------------------------------------------


def test_tasks_of_reasoning_gym_are_read_by_name_and_judged_by_their_environment(tmp_path):
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    small_tokenizer().save(tmp_path / "tokenizer")
    prepared = {}
    for answer in ("auto", "gym"):
        config = PromptDataConfig(
            sources=("gym:chain_sum:20",), tokenizer=str(tmp_path / "tokenizer"), template="plain", answer=answer,
            validation_fraction=0.2,
        )  # fmt: skip
        prepare_prompts(config, tmp_path / answer, longest=400)
        prepared[answer] = open_prompts(tmp_path / answer)
    for split in ("train", "validation"):
        pairs = zip(*(getattr(prepared[answer], split).records for answer in ("auto", "gym")), strict=True)
        for plain, task in pairs:
            assert plain.tokens == task.tokens
            assert (reward("gym", f"<answer>{plain.answer}</answer>", task.answer)) == 1.0
            assert reward("gym", "no idea", task.answer) < 1.0
    with pytest.raises(RewardError, match=r"with data\.answer gym"):
        Rewards({"gym": 1.0})("p", [[1]], ["7"], "7", "data.json, record 3")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [("gym:chain_sun", "did you mean chain_sum"), ("gym:chain_sum:few", "is no number of tasks")],
)
def test_environments_that_are_none_are_refused(source, sentence):
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    with pytest.raises(ValueError, match=sentence):
        list(gym_records(source))


@pytest.mark.parametrize(("name", "module"), [("math", "math_verify"), ("gym", "reasoning_gym")])
def test_a_library_that_a_reward_needs_is_asked_for_at_the_start(monkeypatch, name, module):
    """Trap: a run that fails at its first answer, after the model has been loaded and data prepared."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=module):
        Rewards({name: 1.0})


# --- the calculator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("1 + 2 * 3", 7), ("(1 + 2) * -3", -9), ("7 / 2", 3.5), ("2 ** 10", 1024), ("1,000 - 1", 999)]
)
def test_arithmetic(text, value):
    assert calculate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "().__class__", "9 ** 9 ** 9", "2 ** 1000", "1 / 0", "a + 1", "'a' * 3",
        "[1]", "1 if 1 else 2", "1e400", "(" * 150, "1 +", "", "1" * 300, "(-1) ** 0.5", "True + 1", "lambda: 1", "\0",
    ],
)  # fmt: skip
def test_nothing_but_arithmetic_is_calculated(text):
    """Trap: eval on what a model wrote."""
    start = time.monotonic()
    with pytest.raises(ValueError):
        calculate(text)
    assert time.monotonic() - start < 5


# --- tests of code ---------------------------------------------------------------------------------------------------


def test_code_passes_its_tests_or_not():
    answer = "assert double(4) == 8"
    assert reward("tests", "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", answer) == 1.0
    assert reward("tests", "def double(x): return x", answer) == 0.0
    assert reward("tests", "not python", answer) == 0.0
    assert code_of("```\na\n```\n```py\nb\n```") == "b\n"


def test_code_runs_under_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert run_limited("while True: pass", seconds=0.5) is None
    assert run_limited("x = 'a' * (2 << 30)") != 0
    assert run_limited("import os, sys; sys.exit('SECRET' in os.environ)") == 0
    assert run_limited("open('f', 'wb').write(b'a' * (4 << 20))") != 0
    assert run_limited("raise SystemExit(0)") == 0


def test_what_code_starts_ends_with_it(tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    assert run_limited(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])") == 0
    time.sleep(2.5)
    assert not mark.exists()


# --- several rewards -------------------------------------------------------------------------------------------------


def raising(prompt, tokens, text, answer):
    if text == "bad":
        raise KeyError("oh")
    return math.nan if text == "nan" else float(len(tokens))


def test_weighted_sums_of_rewards_of_ours_and_yours():
    rewards = Rewards({"exact": 1.0, "regex:^a": 0.25, f"{__name__}:raising": 0.1})
    found = rewards("p", [[1], [1, 2]], ["a", "b"], "b", "data.json, record 3")
    assert found.totals == pytest.approx([0.25 + 0.1, 1.0 + 0.2])
    assert found.parts["exact"] == [0.0, 1.0]
    assert found.skipped == [False, False]


@pytest.mark.parametrize(("text", "how"), [("bad", r"raised KeyError \('oh'\)"), ("nan", "is nan")])
def test_a_reward_that_fails_names_the_record_and_the_sample(text, how):
    weights = {f"{__name__}:raising": 1.0}
    with pytest.raises(RewardError, match=rf"raising {how} for sample 1 of data\.json, record 3: '{text}'"):
        Rewards(weights)("p", [[1], [1]], ["good", text], None, "data.json, record 3")
    found = Rewards(weights, skip=True)("p", [[1], [1]], ["good", text], None, "data.json, record 3")
    assert (found.totals, found.skipped) == ([1.0, 0.0], [False, True])


def test_form_may_not_outweigh_answers():
    """Trap: a format that is worth more than an answer, which a model learns instead."""
    check_weights({"exact": 1.0, "think_format": 0.2, "regex:x": 0.5})
    check_weights({"think_format": 1.0})
    with pytest.raises(ValueError, match=r"rewards of form weigh 1\.2 together and those of answers 1"):
        check_weights({"exact": 1.0, "think_format": 0.7, "brevity": -0.5})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("exakt", "is neither one of exact"),
        ("no.such:thing", "is neither one of exact"),
        ("math:pi", "is not a function"),
        ("regex:(", "is no regular expression"),
        ("model:/nowhere", "nowhere"),
    ],
)
def test_unknown_rewards_are_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        Rewards({name: 1.0})
    with pytest.raises(ValueError, match="rewards is empty"):
        Rewards({})
