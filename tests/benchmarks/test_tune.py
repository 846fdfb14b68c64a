"""The tuner, rehearsed in Triton's interpreter, and the tables that launch functions read."""

import importlib
import json
from dataclasses import dataclass, replace

import pytest
from kernel_testing import require_interpreter
from llmfast.kernels.frame import tuned
from llmfast.kernels.frame.launch import CHIPS


@pytest.fixture
def tune(bench):
    require_interpreter()
    return importlib.import_module("benchmarks.tune")


@pytest.fixture
def questions(tune, monkeypatch):
    """The questions about an op in the interpreter, whose dtype leaves the suites again."""
    for name in ("attention", "activation", "rope", "cross_entropy", "linear_cross_entropy", "nf4"):
        suite = importlib.import_module(f"benchmarks.suites.{name}")
        monkeypatch.setattr(suite, "DTYPE", suite.DTYPE)
    launch = importlib.import_module("llmfast.kernels.losses.launch")
    monkeypatch.setattr(launch, "FEW_ON_GPU", launch.FEW_ON_GPU)
    return lambda op: list(tune.QUESTIONS[op](True))


@pytest.fixture
def norm_module():
    return importlib.import_module("llmfast.kernels.norm.launch")


@dataclass(frozen=True)
class Choice:
    block: int


def test_a_row_of_the_table_comes_before_the_rule_on_its_chip_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    row = {"function": "rule", "capability": 90, "arguments": [128, False], "choice": {"block": 7}}
    (tmp_path / "some_op.json").write_text(json.dumps({"rows": [row]}))

    @tuned.tuned("some_op", Choice)
    def rule(device, width, heavy):
        return Choice(width)

    assert rule(CHIPS[90], 128, False) == Choice(7)
    assert rule(CHIPS[80], 128, False) == Choice(128)
    assert rule(CHIPS[90], 128, True) == Choice(128)
    assert rule(CHIPS[90], 64, False) == Choice(64)


def test_without_a_table_the_rule_chooses(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    rule = tuned.tuned("no_such_op", Choice)(lambda device, width: Choice(width))
    assert rule(CHIPS[90], 128) == Choice(128)


def slower_than_halved(tune, monkeypatch):
    """Times as if every halving of the block were worth it."""

    def in_turn(samplers, rounds):
        return {choice: tune.measure.Timing(choice.block * 1e-6, 0, 0, "clock") for choice in samplers}

    monkeypatch.setattr(tune.measure, "in_turn", in_turn)


def test_the_tuner_goes_to_what_is_right_and_fastest(tune, norm_module, tmp_path, monkeypatch):
    """Trap: a choice that leaves out columns is the fastest of all."""
    slower_than_halved(tune, monkeypatch)
    questions = [next(iter(tune.QUESTIONS["norm"](True)))]
    monkeypatch.setitem(tune.QUESTIONS, "norm", lambda tiny: questions)
    before = dict(norm_module.forward_launch.rows)
    path = tune.tune("norm", "cpu", tmp_path, say=lambda line: None)
    assert norm_module.forward_launch.rows == before
    rows = json.loads(path.read_text())["rows"]
    rule = questions[0].function.rule(importlib.import_module("llmfast.kernels.frame.launch").INTERPRETER, 64)
    assert rule.block == 64
    assert rows == []  # smaller blocks would be wrong, so that the rule stands


def test_the_rows_of_the_tuner_are_read_by_the_launch_function(tune, norm_module, tmp_path, monkeypatch):
    def in_turn(samplers, rounds):
        return {choice: tune.measure.Timing(choice.rows * 1e-6, 0, 0, "clock") for choice in samplers}

    monkeypatch.setattr(tune.measure, "in_turn", in_turn)
    questions = [next(iter(tune.QUESTIONS["norm"](True)))]
    monkeypatch.setitem(tune.QUESTIONS, "norm", lambda tiny: questions)
    for _ in range(2):  # a second time replaces the rows of the first
        path = tune.tune("norm", "cpu", tmp_path, say=lambda line: None)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["choice"]["rows"] == 1
    assert row["measured"]["seconds"] < row["measured"]["seconds_of_rule"]
    assert {"gpu", "revision", "versions", "time", "tried"} <= row["measured"].keys()
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    tuned._table.cache_clear()
    again = tuned.Tuned("norm", norm_module.NormLaunch, norm_module.forward_launch.rule)
    tuned._table.cache_clear()
    assert again(questions[0].function and CHIPS[80], 64).rows == 1
    assert again(CHIPS[90], 64) == norm_module.forward_launch.rule(CHIPS[90], 64)


def test_neighbours_differ_in_one_setting_and_stay_positive(tune):
    from llmfast.kernels.attention.launch import Tile

    tile = Tile(64, 32, 4, 1)
    found = list(tune.neighbours(tile))
    assert replace(tile, tma=True) in found
    assert replace(tile, stages=2) in found
    assert all(min(t.block_m, t.block_n, t.warps, t.stages) >= 1 for t in found)
    assert all(sum(getattr(t, n) != getattr(tile, n) for n in vars(tile)) == 1 for t in found)


def test_a_rehearsal_does_not_write_the_tables_that_are_used(tune, capsys):
    with pytest.raises(SystemExit):
        tune.main(["norm", "--tiny"])
    assert "give --out" in capsys.readouterr().err


class Asked(dict):
    """The rows of a launch function, and what it was asked for."""

    def __init__(self):
        self.keys_asked = set()

    def get(self, key, default=None):
        self.keys_asked.add(key)
        return default


OPS = [
    "attention", "norm", "activation", "rope", "cross_entropy", "linear_cross_entropy", "nf4", "optimizer",
]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_each_case_depends_on_what_is_asked_about_it(tune, questions, op, monkeypatch):
    """Trap: a question whose case takes another launch measures noise and writes a row that nobody reads."""
    from llmfast.kernels import backend
    from llmfast.kernels.frame.plan import forget_plans

    for question in questions(op):
        search = tune.Search(question, "cpu")
        asked = Asked()
        monkeypatch.setattr(question.function, "rows", asked)
        ours = next(each for each in question.case.contenders if each.name == "llmfast").build()
        with backend("triton"):
            error, allowed, worst = search.judge.error(ours)
            run = tune.compare.call(
                question.case, ours, question.pass_, tune.compare.leaves(question.case, search.inputs)
            )
            asked.keys_asked.clear()
            forget_plans()
            run()
        assert error <= allowed, (question, worst)
        assert search.key in asked.keys_asked, question


def test_every_tuned_function_is_asked_about(tune, questions):
    """Trap: a launch function that a table may answer for, and no question fills it."""
    import pkgutil

    import llmfast.kernels

    found = set()
    for info in pkgutil.walk_packages(llmfast.kernels.__path__, "llmfast.kernels."):
        if "compile_check.__main__" in info.name:
            continue
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, tuned.Tuned):
                found.add((value.op, value.rule.__module__, value.rule.__name__))
    asked = {(op, q.function.rule.__module__, q.function.rule.__name__) for op in OPS for q in tune_all(tune, op)}
    assert found == asked


def tune_all(tune, op):
    """With those that are asked on a GPU only: making cases draws nothing yet."""
    return tune.QUESTIONS[op](False)


def test_fixed_settings_stay(tune):
    from llmfast.kernels.nf4.launch import FewTokensLaunch

    found = list(tune.neighbours(FewTokensLaunch(32, 8), fixed=("tokens",)))
    assert found
    assert {choice.tokens for choice in found} == {8}


def test_ops_share_a_table_by_function_and_arguments(tune, questions, tmp_path, monkeypatch):
    """nf4 has three launch functions, and kernels of 4 and of 8 bits."""

    def in_turn(samplers, rounds):
        return {choice: tune.measure.Timing(choice.warps * 1e-6, 0, 0, "clock") for choice in samplers}

    monkeypatch.setattr(tune.measure, "in_turn", in_turn)
    chosen = [each for each in questions("nf4") if each.arguments[0] in (2, "int8")][:2]
    monkeypatch.setitem(tune.QUESTIONS, "nf4", lambda tiny: chosen)
    rows = json.loads(tune.tune("nf4", "cpu", tmp_path, say=lambda line: None).read_text())["rows"]
    assert [row["function"] for row in rows] == [each.function.rule.__name__ for each in chosen]
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    for question, row in zip(chosen, rows, strict=True):
        tuned._table.cache_clear()
        again = tuned.Tuned("nf4", question.function.choice, question.function.rule)
        assert vars(again(CHIPS[80], *question.arguments)) == row["choice"]
    tuned._table.cache_clear()
