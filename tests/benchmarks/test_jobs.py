"""Whole jobs: who does another job than the others is reported as wrong; what a call costs the host; the loader."""

import importlib
from dataclasses import replace

import pytest
import torch

TOY = torch.float32


def run(bench, name, cases, folder):
    return bench.run_cases(name, cases, bench.Options("cpu", tiny=True, out=folder), say=lambda line: None)


@pytest.fixture(scope="module")
def train_step(bench):
    return importlib.import_module("benchmarks.suites.train_step")


def toy_job(train_step):
    return train_step.job(train_step.Step("toy", 2, 16, TOY, compiles=False), "cpu")


def changed(job, name, change):
    """The job with one program built by ``change(program)`` beside it, under the name "peer"."""
    from benchmarks.contenders import Contender

    source = next(contender for contender in job.contenders if contender.name == name)
    return replace(job, contenders=[source, Contender("peer", lambda: change(source.build()))])


def other_gradient(program):
    """As after a backward pass that forgets a factor."""
    found = program.evidence
    return replace(
        program,
        evidence=lambda: (lambda e: e | {"gradient of the embedding": 1.001 * e["gradient of the embedding"]})(found()),
    )


def test_a_program_with_another_gradient_is_wrong_and_never_the_best(bench, train_step, tmp_path):
    from benchmarks.reporting.report import render

    report = run(bench, "train_step", [changed(toy_job(train_step), "PyTorch", other_gradient)], tmp_path)
    found = {result.contender: result for result in report.results}
    assert (found["PyTorch"].status, found["peer"].status) == ("ok", "wrong")
    assert "gradient of the embedding is off by" in found["peer"].note
    assert "WRONG" in render(tmp_path)


def test_a_program_that_fails_is_named_and_the_others_are_measured(bench, train_step, tmp_path):
    def fails(program):
        raise RuntimeError("out of memory")

    report = run(bench, "train_step", [changed(toy_job(train_step), "PyTorch", fails)], tmp_path)
    found = {result.contender: (result.status, result.note) for result in report.results}
    assert found["peer"] == ("failed", "RuntimeError: out of memory")
    assert found["PyTorch"][0] == "ok"


def test_memory_counts_weights_and_optimizer_state(bench, train_step, tmp_path):
    report = run(bench, "train_step", [toy_job(train_step)], tmp_path)
    weights = 4 * train_step.SHAPES["toy"].parameters
    for result in report.results:
        assert result.peak_bytes >= 3 * weights, result.contender


def test_models_train_for_the_whole_job(bench, train_step):
    """Trap: a step that leaves out its update would be timed as the fastest."""
    job = toy_job(train_step)
    for contender in job.contenders:
        program = contender.build()
        program.evidence()
        losses = [program.call().item() for _ in range(8)]
        assert losses[-1] < losses[0] - 0.01, contender.name


def test_every_dispatch_reaches_the_launch_and_launches_nothing(bench, tmp_path, monkeypatch):
    """Trap: a contender that took the plain definition would be timed as the operator."""
    from llmfast.kernels import backend

    dispatch = importlib.import_module("benchmarks.suites.dispatch")
    launches = []
    monkeypatch.setattr("triton.runtime.interpreter.GridExecutor.__call__", lambda *a, **k: launches.append(a))
    with dispatch.nothing_launched():
        for case in dispatch.cases("tiny"):
            exact = case.ours(*case.inputs)
            with backend("triton"):
                found = case.ours(*case.inputs)
            first, second = (each[0] if isinstance(each, tuple) else each for each in (exact, found))
            assert first.shape == second.shape
            assert not torch.equal(first, second), f"{case} computed its result"
    assert not launches


@pytest.mark.parametrize("suite", ["dispatch", "loader"])
def test_suites_of_the_cpu_give_results_for_all_that_take_part(bench, suite, tmp_path, monkeypatch):
    module = importlib.import_module(f"benchmarks.suites.{suite}")
    monkeypatch.setattr(module, "CALLS", 1, raising=False)
    report = bench.run_suite(suite, bench.Options("cpu", tiny=True, out=tmp_path), say=lambda line: None)
    assert not report.not_run
    assert {result.status for result in report.results} == {"ok"}
    assert "llmfast" in {result.contender for result in report.results}
    assert all(result.median_s > 0 for result in report.results)


def test_a_loader_that_mixes_up_targets_is_wrong(bench, tmp_path):
    from benchmarks.contenders import Contender

    loader = importlib.import_module("benchmarks.suites.loader")
    reading = loader.Reading(2**16, 2, 32)
    job = loader.job(reading, tmp_path)
    (file,) = tmp_path.glob("*.bin")
    following = loader.nanogpt(file, reading)

    def unshifted():
        tokens, _ = following()
        return tokens, tokens

    job = replace(job, contenders=[*job.contenders, Contender("peer", lambda: loader.reading(unshifted, 1))])
    results = job.run("cpu", 1, bench.measure.ceilings("cpu", tiny=True))
    found = {result.contender: result.status for result in results}
    assert found.pop("peer") == "wrong"
    assert set(found.values()) == {"ok"}


def test_a_plain_model_without_smear_is_another_model(bench, train_step):
    """Trap: at its first value, 0, smear changes nothing, and whoever leaves it out would be found right."""
    from benchmarks.plain import PlainDecoder

    config = train_step.SHAPES["toy quickstart"]
    plain = PlainDecoder(config)
    plain.load_state_dict(train_step.drawn(config).state_dict())
    tokens = torch.arange(8).view(1, 8)
    before = plain(tokens)
    plain.smear = None
    assert not torch.allclose(plain(tokens), before, atol=1e-3)


def test_the_measured_quickstart_is_what_quickstart_trains(train_step):
    from llmfast.commands.quickstart import quickstart_config

    shape = train_step.SHAPES["quickstart"]
    assert shape == quickstart_config("mini", data=(), vocab_size=4096, seed=0).model
    assert shape.smear
    assert shape.scale_embedding
