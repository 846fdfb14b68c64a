"""The tokenizer suites: equal ids first, texts that every machine has, nothing of this machine in a result file."""

import importlib
import json
import struct
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture
def text_jobs(bench):
    return importlib.import_module("benchmarks.text.text_jobs")


def run(job):
    return {result.contender: result for result in job.run("cpu", 3, {})}


@pytest.fixture(scope="module")
def measured(bench, tmp_path_factory):
    """Both suites at their smallest, without the shared texts: (report, text of the file) of each."""
    texts = importlib.import_module("benchmarks.text.texts")
    tokenizers = importlib.import_module("benchmarks.text.tokenizers")
    folder = tmp_path_factory.mktemp("measured")
    empty = tmp_path_factory.mktemp("empty")
    fresh = importlib.import_module("benchmarks.text.fresh")
    reports = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (texts, tokenizers, fresh):
            patch.setattr(module, "DATA", empty)
        patch.setattr(fresh, "CATALOGS", empty)
        for cached in (tokenizers.vocabularies, fresh.stream):
            cached.cache_clear()
        for name in ("tokenizer", "tokenizer_train"):
            options = bench.Options("cpu", tiny=True, out=folder)
            report = bench.run_suite(name, options, say=lambda line: None)
            reports[name] = report, (folder / report.file_name).read_text(encoding="utf-8")
    for cached in (tokenizers.vocabularies, fresh.stream):
        cached.cache_clear()
    return reports


def test_without_any_data_texts_and_a_vocabulary_of_this_python_are_taken(measured):
    report, _ = measured["tokenizer"]
    assert not report.not_run
    assert "docstrings of Python" in report.inputs["English, decoded"]
    assert report.inputs["multilingual, decoded"].startswith("words of random letters")
    assert report.inputs["multilingual, encoded"].endswith("words of random letters")
    assert "ByteLevel" in report.inputs["vocabularies of fastokens"]
    statuses = Counter((result.contender, result.status) for result in report.results if result.pass_ != "load")
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
    from benchmarks.text.tokenizers import Absent

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


@pytest.fixture(scope="module")
def stream(bench):
    """A short stream under the vocabulary that every machine has."""
    fresh, streams, tokenizers = map(
        importlib.import_module, ("benchmarks.text.fresh", "benchmarks.text.streams", "benchmarks.text.tokenizers")
    )
    text = fresh.stream_of("this file", Path(__file__).read_text(encoding="utf-8") * 8)
    return streams.Streaming(tokenizers.trained(), "tests", "lists", text, 20_000, 2)


def test_a_stream_gives_a_cold_and_a_steady_result(stream, monkeypatch):
    streams = importlib.import_module("benchmarks.text.streams")
    monkeypatch.setattr(streams, "LIBRARIES", {"llmfast": None, "tiktoken": None, "gigatoken": None, "rs_bpe": None})
    results = stream.run("cpu", 3, {})
    for name in ("llmfast", "tiktoken"):
        of_name = {result.pass_: result for result in results if result.contender == name}
        assert list(of_name) == ["encode to lists", "encode to lists the first time"]
        assert {result.status for result in of_name.values()} == {"ok"}
        assert all(result.bytes == 20_000 and result.median_s > 0 for result in of_name.values())
    (absent,) = [result for result in results if result.contender == "rs_bpe"]
    assert absent.status in ("missing", "skipped")
    assert absent.note


def test_a_stream_that_ends_wrong_or_fails_says_so(stream, monkeypatch):
    """Traps: ids that differ late in a stream, a library that takes its process with it."""
    streams = importlib.import_module("benchmarks.text.streams")
    monkeypatch.setattr(streams, "LIBRARIES", {"llmfast": None})
    expected = streams.expected_of(stream.vocabulary, stream.part_bytes, stream.text.whole)
    other = [*expected[:-1], (expected[-1][0], "other")]
    monkeypatch.setattr(streams, "expected_of", lambda *of: other)
    for result in stream.run("cpu", 3, {}):
        assert result.status == "wrong"
        assert result.note == f"other ids than tiktoken's in part {len(expected)}"
        assert result.median_s > 0
    monkeypatch.setattr(streams, "LIBRARIES", {"no library": None})
    monkeypatch.setattr(streams, "expected_of", lambda *of: expected)
    (failed,) = stream.run("cpu", 3, {})
    assert (failed.status, failed.median_s) == ("missing", None)
    worker = streams.Worker("llmfast")
    with worker.started(stream, Path("no such file")):
        worker.await_start()
        worker.encode(0, *expected[0])
    assert worker.status == "failed"
    assert "FileNotFoundError" in worker.note


def test_a_slow_library_encodes_the_first_parts_only(stream, monkeypatch):
    streams = importlib.import_module("benchmarks.text.streams")
    worker = streams.Worker("llmfast")
    worker.times, worker.seconds = [1.0] * (streams.FEWEST + 1), streams.SECONDS + 1
    worker.encode(9, 10, "ids")  # there is no process to ask
    assert len(worker.times) == streams.FEWEST + 1


def test_a_stream_has_nothing_twice(bench, tmp_path, monkeypatch):
    fresh = importlib.import_module("benchmarks.text.fresh")
    assert list(fresh.unrepeated(["one", "two", "one", "", "three", "four"], 9)) == ["one", "two", "thr"]
    assert list(fresh.unrepeated(["zwölf"], 3)) == ["zw"]  # no half of a character
    catalog = tmp_path / "de.mo"
    texts = [b"header", "Das ist eine Übersetzung, die lang genug ist.".encode(), b"kurz"]
    offset = 28 + 16 * len(texts)
    table = b"".join(struct.pack("<2I", len(text), offset + sum(map(len, texts[:i]))) for i, text in enumerate(texts))
    head = struct.pack("<7I", fresh.MAGIC, 0, len(texts), 28, 28 + 8 * len(texts), 0, 0)
    catalog.write_bytes(head + table + table + b"".join(texts))
    monkeypatch.setattr(fresh, "CATALOGS", tmp_path)
    assert list(fresh.messages()) == ["Das ist eine Übersetzung, die lang genug ist.\n"]
    assert list(fresh.translations(b"no catalog")) == []


def test_gpt2_is_given_to_fastokens_as_it_was_published(bench):
    """Trap: by GPT-2's expression as a Split it takes another path, an eighth as fast."""
    tokenizers = importlib.import_module("benchmarks.text.tokenizers")
    known = {str(each): each for each in tokenizers.vocabularies()}
    if "gpt2" not in known:
        pytest.skip("needs the published rank files")
    file = json.loads(tokenizers.hugging_face_file(known["gpt2"]).read_text(encoding="utf-8"))
    assert file["pre_tokenizer"]["type"] == "ByteLevel"
    assert file["pre_tokenizer"]["use_regex"]


def test_documents_of_a_stream_are_mixed(bench):
    """Trap: a stream that is in one language first, and then in another."""
    fresh, texts = (importlib.import_module(f"benchmarks.text.{name}") for name in ("fresh", "texts"))
    text = "a" * 10 * texts.DOCUMENT + "b" * 10 * texts.DOCUMENT
    documents = fresh.stream_of("letters", text).documents
    assert Counter("".join(documents)) == Counter(text)
    assert {"a", "b"} <= {document[0] for document in documents[:8]}


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
