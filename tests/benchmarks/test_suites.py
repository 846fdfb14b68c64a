"""The benchmark suites on a CPU: results of the schema, wrong contenders named, a run without a GPU that says so."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("median_s", "p20_s", "p80_s", "bytes", "flops", "fraction_of_copy", "fraction_of_gemm")


@pytest.fixture(scope="module")
def norm(bench):
    return importlib.import_module("benchmarks.suites.norm")


def run(bench, name, cases, folder):
    return bench.run_cases(name, cases, bench.Options(device="cpu", out=folder), say=lambda line: None)


@pytest.mark.parametrize(
    "suite",
    [
        "norm",
        "activation",
        "rope",
        "cross_entropy",
        "linear_cross_entropy",
        "attention",
        "nf4",
        "optimizer",
        "train_step",
        "finetune",
        "align",
        "evaluate",
        "qlora",
        "generate",
    ],
)
def test_suite_gives_results_of_the_schema(bench, suite, tmp_path):
    report = bench.run_suite(suite, bench.Options(device="cpu", tiny=True, out=tmp_path), say=lambda line: None)
    assert not report.not_run
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert content["schema"] == 1
    assert content["machine"]["versions"]["torch"]
    assert content["ceilings"]["copy_bytes_per_s"] > 0
    assert content["ceilings"]["bfloat16_flops_per_s"] > 0
    # Some forms of a kernel run on one chip only; what is not skipped must be right.
    ours = [row for row in content["results"] if row["contender"].startswith("llmfast") and row["status"] != "skipped"]
    plain = [row for row in content["results"] if row["status"] == "ok" and row not in ours]
    assert {row["pass"] for row in ours} == {row["pass"] for row in content["results"] if row not in ours}
    for row in ours + plain:
        assert row["status"] == "ok", row["note"]
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
        assert all(row[name] > 0 for name in MEASURED)
        assert 0 <= row["error"] <= row["allowed_error"]
    absent = [row for row in content["results"] if row["status"] in ("missing", "skipped")]
    assert all(row["note"] for row in absent)
    assert not [row for row in content["results"] if row["status"] in ("wrong", "failed")]


def test_decoding_on_a_cpu_takes_turns_with_other_processes(bench, tmp_path):
    pytest.importorskip("transformers")
    report = bench.run_suite("decode_cpu", bench.Options(device="cpu", tiny=True, out=tmp_path), say=lambda line: None)
    assert not report.not_run
    assert {(row.contender, row.dtype, row.pass_) for row in report.results if row.status == "ok"} >= {
        ("llmfast", "int4", "first token"),
        ("llmfast", "int4", "decode"),
    }
    assert {row.status for row in report.results} <= {"ok", "missing"}


@pytest.mark.gpu
def test_on_a_gpu_ours_replays_as_a_graph_with_memory_and_host_time(bench, norm, tmp_path):
    options = bench.Options(out=tmp_path)
    report = bench.run_cases("norm", [norm.rms_norm_case(2048, 1024)], options, say=lambda line: None)
    assert not report.not_run
    ours = [result for result in report.results if result.contender == "llmfast"]
    assert [result.pass_ for result in ours] == ["forward", "backward"]
    for result in ours:
        assert (result.status, result.method) == ("ok", "graph"), result.note
        assert result.peak_bytes >= 2048 * 1024 * 2
        assert result.host_s > 0


def test_result_files_read_back_equal(bench, norm, tmp_path):
    from benchmarks.results import read

    report = run(bench, "norm", [norm.rms_norm_case(8, 16)], tmp_path)
    assert read(tmp_path / report.file_name) == report


def test_another_schema_is_refused(bench, norm, tmp_path):
    from benchmarks.results import read

    report = run(bench, "norm", [norm.rms_norm_case(8, 16)], tmp_path)
    path = tmp_path / report.file_name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        read(path)


def wrong_output(x, weight):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6) + 0.05


class ForgetsWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weight):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, torch.ones_like(grad[0])


def wrong_gradient(x, weight):
    y = torch.nn.functional.rms_norm(x, x.shape[-1:], weight.detach(), 1e-6)
    return ForgetsWeight.apply(y, weight)


def not_a_number(x, weight):
    return x * weight * float("nan")


def raises(x, weight):
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize("function", [wrong_output, wrong_gradient, not_a_number])
def test_wrong_contender_is_reported_as_wrong_and_never_the_best(bench, norm, function, tmp_path):
    from benchmarks.contenders import given
    from benchmarks.reporting.report import render

    case = norm.rms_norm_case(8, 64)
    case = replace(case, contenders=[*case.contenders, given("peer", function)])
    report = run(bench, "norm", [case], tmp_path)
    peer = [result for result in report.results if result.contender == "peer"]
    assert [result.status for result in peer] == ["wrong", "wrong"]
    assert all("is off by" in result.note for result in peer)
    assert ("gradient of weight" in peer[0].note) == (function is wrong_gradient)
    assert "WRONG" in render(tmp_path)
    table = render(tmp_path, short=True)
    assert "peer wrong" in table
    assert "| peer |" not in table


def test_wrong_outside_of_the_checked_part_does_not_hide_what_is_inside(bench, tmp_path):
    """Attention is checked on one key head: a contender that mixes up heads is seen there."""
    from benchmarks.contenders import given

    attention = importlib.import_module("benchmarks.suites.attention")
    case = attention.dense(2, 4, 2, 32, 16, True)

    def other_heads(q, k, v):
        return case.plain(q, k.flip(1), v.flip(1))

    case = replace(case, contenders=[given("peer", other_heads), given("SDPA", case.plain)])
    report = run(bench, "attention", [case], tmp_path)
    assert {result.contender: result.status for result in report.results} == {"peer": "wrong", "SDPA": "ok"}


def test_failing_and_missing_contenders_say_why(bench, norm, tmp_path):
    from benchmarks.contenders import Contender, given

    case = norm.rms_norm_case(8, 64)
    absent = Contender("absent", lambda: None, "no_such_package")
    case = replace(case, contenders=[case.contenders[0], given("broken", raises), absent])
    report = run(bench, "norm", [case], tmp_path)
    found = {result.contender: (result.status, result.note) for result in report.results}
    assert found["broken"] == ("failed", "RuntimeError: no kernel for this")
    assert found["absent"] == ("missing", "no_such_package is not installed")
    assert found["llmfast"][0] == "ok"


def test_peer_that_overwrites_its_inputs_spoils_no_other(bench, norm, tmp_path):
    from benchmarks.contenders import given

    def overwrites(x, weight):
        y = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)
        x.data.zero_()
        return y

    case = norm.rms_norm_case(8, 64)
    case = replace(case, contenders=[given("peer", overwrites), *case.contenders[:2]])
    report = run(bench, "norm", [case], tmp_path)
    assert {r.status for r in report.results if r.contender != "peer"} == {"ok"}


def test_cases_without_time_are_named(bench, norm, tmp_path):
    cases = [norm.rms_norm_case(8, 16), norm.layer_norm_case(8, 16)]
    options = bench.Options(device="cpu", out=tmp_path, limit_s=1e-6)
    report = bench.run_cases("norm", cases, options, say=lambda line: None)
    assert report.not_run == {str(case): bench.NO_TIME for case in cases}


def test_counted_pairs_are_those_of_the_mask(bench):
    from llmfast.kernels.attention.reference import visible

    attention = importlib.import_module("benchmarks.suites.attention")
    for causal, window in ((False, None), (True, None), (True, 3), (True, 40)):
        mask = visible(16, 16, window, 0 if causal else None, "cpu")
        assert attention.visible_pairs(16, causal, window) == mask.sum()


def test_list_names_every_suite(bench, capsys):
    from benchmarks.__main__ import main

    assert main([]) == 0
    said = capsys.readouterr().out
    modules = {path.stem for path in (ROOT / "benchmarks" / "suites").glob("*.py")} - {"__init__"}
    assert all(f"\n  {name} " in said for name in modules)
