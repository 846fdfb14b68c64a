"""The tokenizer suites: equal ids first, texts that every machine has, nothing of this machine in a result file."""

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture
def text_jobs(bench):
    return importlib.import_module("benchmarks.text_jobs")


def run(job):
    return {result.contender: result for result in job.run("cpu", 3, {})}


@pytest.fixture(scope="module")
def measured(bench, tmp_path_factory):
    """Both suites at their smallest, without the shared texts: (report, text of the file) of each."""
    texts = importlib.import_module("benchmarks.texts")
    tokenizers = importlib.import_module("benchmarks.tokenizers")
    folder = tmp_path_factory.mktemp("measured")
    empty = tmp_path_factory.mktemp("empty")
    reports = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (texts, tokenizers):
            patch.setattr(module, "DATA", empty)
        for cached in (texts.english, texts.multilingual, tokenizers.vocabularies):
            cached.cache_clear()
        for name in ("tokenizer", "tokenizer_train"):
            options = bench.Options("cpu", tiny=True, out=folder)
            report = bench.run_suite(name, options, say=lambda line: None)
            reports[name] = report, (folder / report.file_name).read_text(encoding="utf-8")
    for cached in (texts.english, texts.multilingual, tokenizers.vocabularies):
        cached.cache_clear()
    return reports


def test_without_any_data_texts_and_a_vocabulary_of_this_python_are_taken(measured):
    report, _ = measured["tokenizer"]
    assert not report.not_run
    assert report.inputs["English"].startswith("docstrings of Python's standard library")
    assert report.inputs["multilingual"].startswith("made up")
    statuses = Counter((result.contender, result.status) for result in report.results)
    assert statuses["llmfast", "ok"] == statuses["tiktoken", "ok"] > 10
    assert not [result for result in report.results if result.status == "failed"]
    passes = {result.pass_ for result in report.results if result.contender == "llmfast"}
    assert passes > {"encode to NumPy", "encode to NumPy the first time", "one call to a list", "load"}


def test_trainers_find_the_tokens_of_their_rule(measured):
    report, _ = measured["tokenizer_train"]
    assert not report.not_run
    found = {result.contender: result for result in report.results}
    assert found["llmfast"].status == "ok"
    assert {result.status for result in found.values()} <= {"ok", "missing"}
    assert all(result.peak_bytes > 2**20 for result in found.values() if result.status == "ok")


@pytest.mark.parametrize("suite", ["tokenizer", "tokenizer_train"])
def test_result_files_hold_no_path_of_this_machine(measured, suite):
    from benchmarks.results import ROOT

    _, content = measured[suite]
    assert str(ROOT) not in content
    assert not [word for word in json.dumps(json.loads(content)).split() if word.strip('"').startswith("/")]


def test_other_ids_are_wrong_and_missing_libraries_are_named(text_jobs):
    from benchmarks.tokenizers import Absent

    calls = {
        "right": lambda: [[1, 2], [3]],
        "other": lambda: [[1, 2], [4]],
        "short": lambda: [[1, 2]],
        "absent": Absent("missing", "absent is not installed"),
        "broken": lambda: 1 / 0,
    }
    found = run(text_jobs.TextJob("op", "encode", lambda: calls, lambda: [[1, 2], [3]], bytes=3))
    assert {name: result.status for name, result in found.items()} == {
        "right": "ok", "other": "wrong", "short": "wrong", "absent": "missing", "broken": "failed",
    }  # fmt: skip
    assert found["other"].note == "differs from tiktoken at 2 of 3"
    assert found["other"].median_s > 0


def test_the_first_call_is_a_result_of_its_own(text_jobs):
    job = text_jobs.TextJob("op", "encode", lambda: {"one": lambda: [1]}, lambda: [1], bytes=1, firsts=2)
    assert [result.pass_ for result in job.run("cpu", 3, {})] == ["encode", "encode the first time"]


def test_a_text_of_several_languages_is_taken_from_all_over(bench):
    texts = importlib.import_module("benchmarks.texts")
    text = "a" * 10 * texts.DOCUMENT + "b" * 10 * texts.DOCUMENT
    counts = Counter("".join(texts.spread(text, 4 * texts.DOCUMENT / 1e6)))
    assert counts["a"] == counts["b"] == 2 * texts.DOCUMENT
    assert "".join(texts.spread(text, 100)) == text


def test_texts_of_yours_are_worked_on_and_refused_by_suites_without(bench, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    options = bench.Options("cpu", tiny=True, out=tmp_path, files=(file,))
    report = bench.run_suite("tokenizer_train", options, say=lambda line: None)
    assert list(report.inputs) == ["mine.txt"]
    assert {result.op for result in report.results} == {"mine.txt"}
    with pytest.raises(ValueError, match="does not measure on text"):
        bench.run_suite("norm", options, say=lambda line: None)


def test_messages_of_peers_lose_their_folders(bench):
    from benchmarks.compare import one_line

    error = OSError("no such file: '/home/somebody/lib/python3/x.so' (see https://example.org/a/b)")
    assert one_line(error) == "OSError: no such file: '.../x.so' (see https://example.org/a/b)"


def test_an_interrupted_measurement_goes_on_with_what_it_lacks(bench, tmp_path):
    norm = importlib.import_module("benchmarks.suites.norm")
    cases = [norm.rms_norm_case(rows, 16) for rows in (4, 8)]
    options = bench.Options("cpu", out=tmp_path)
    first = bench.run_cases("norm", cases[:1], options, say=lambda line: None)
    said = []
    again = bench.run_cases("norm", cases, bench.Options("cpu", out=tmp_path, resume=True), say=said.append)
    assert again.results[: len(first.results)] == first.results
    assert len(again.results) == 2 * len(first.results)
    assert len(said) == 2  # the ceilings, and the one case that was missing
    path = tmp_path / first.file_name
    content = json.loads(path.read_text())
    content["machine"]["python"] = "2.7"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its python is 2\.7"):
        bench.run_cases("norm", cases, bench.Options("cpu", out=tmp_path, resume=True), say=said.append)
