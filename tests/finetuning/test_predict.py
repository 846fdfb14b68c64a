"""``llmfast predict`` on files of all kinds and on standard input: every text once, in the order of the input."""

import io
import json

import pytest
from small_labels import new_labels_run

from llmfast.cli import main
from llmfast.finetuning import predict as predict_module
from llmfast.finetuning.predict import load_classifier, predict
from llmfast.training.loop import fit

TEXTS = ["i love it", "the phone was awful and my case is broken and it is pain", "great", 'a "quoted", text', "hate"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    session = new_labels_run(tmp_path_factory.mktemp("run"), steps=30, evaluate_every=0, sample_every=0)
    fit(session)
    return session.run.folder


def printed(capsys, *words):
    assert main(["predict", *map(str, words)]) == 0
    return capsys.readouterr()


def test_texts_stay_in_order_though_batches_are_sorted_by_length(run, monkeypatch):
    model, tokenizer = load_classifier(run)
    texts = [" ".join(["case"] * (1 + 7 * number % 13)) + f" {number}" for number in range(50)]
    expected = [next(predict(model, tokenizer, [text])) for text in texts]
    widths = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, lengths: widths.append(lengths) or forward(tokens, lengths))
    monkeypatch.setattr(predict_module, "AT_ONCE", 8)
    monkeypatch.setattr(predict_module, "WINDOW", 32)
    found = list(predict(model, tokenizer, iter(texts)))
    assert [each.text for each in found] == texts
    for one, other in zip(found, expected, strict=True):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-5)
    assert all(batch.tolist() == sorted(batch.tolist()) for batch in widths)
    assert [len(batch) for batch in widths] == [8, 8, 8, 8, 8, 8, 2]


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl", "a.ndjson"])
def test_files_of_all_kinds_are_read_alike(run, tmp_path, capsys, name):
    """Traps: byte-order marks, CRLF, a header, columns beside the text, separators of Unicode inside a text."""
    texts = [*TEXTS, "one\u2028two\x0bthree\x85four"]
    contents = {
        "a.txt": "\r\n".join([*texts[:2], "", *texts[2:]]),
        "a.tsv": "id\treview\r\n" + "".join(f"{n}\t{text}\r\n" for n, text in enumerate(texts)),
        "a.csv": "review,stars\r\n" + "".join('"{}",1\r\n'.format(text.replace('"', '""')) for text in texts),
    }
    lines = "\r\n".join(json.dumps({"stars": 1, "review": text}, ensure_ascii=False) for text in texts)
    (tmp_path / name).write_bytes(("\ufeff" + contents.get(name, lines)).encode())
    found = printed(capsys, run, "--file", tmp_path / name, "--column", "review").out
    # Lines end at \n alone: str.splitlines would end them at U+2028, too.
    assert [line.split("\t")[2] for line in found.split("\n")[:-1]] == texts
    as_json = printed(capsys, run, "--file", tmp_path / name, "--column", "review", "--format", "jsonl").out
    for line, row in zip(found.split("\n"), map(json.loads, as_json.split("\n")[:-1]), strict=False):
        assert line.split("\t")[0] == row["label"]
        assert row["probabilities"][row["label"]] == row["probability"]
        assert float(line.split("\t")[1]) == pytest.approx(row["probability"], abs=1e-4)


def test_standard_input_is_read_as_a_text_file_is(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    by_file = printed(capsys, run, "--file", tmp_path / "a.txt").out
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff" + "\r\n\r\n".join(TEXTS)))
    assert printed(capsys, run).out == by_file


def test_a_row_stays_a_line_and_an_empty_text_a_row(run, tmp_path, capsys):
    """Trap: texts with tabs and line ends, which would be more columns and lines."""
    texts = ["one\ttwo\nthree\r\\n", "", "x"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lines = printed(capsys, run, "--file", tmp_path / "a.jsonl").out.split("\n")
    assert [line.split("\t")[2:] for line in lines] == [[r"one\ttwo\nthree\r\\n"], [""], ["x"], []]
    rows = printed(capsys, run, "--file", tmp_path / "a.jsonl", "--format", "jsonl").out.splitlines()
    assert [json.loads(row)["text"] for row in rows] == texts


def test_texts_that_are_cut_are_counted_and_said(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("short\n" + "long " * 60 + "\n" + "longer " * 60)
    found = printed(capsys, run, "--file", tmp_path / "a.txt")
    assert found.err == "2 of 3 texts are longer than 16 tokens and were cut there\n"
    assert found.out.count("\n") == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', "a.jsonl:2 has no text in 'text', but None"),
        ("a.jsonl", b'{"body": "a"}\n', "a.jsonl:1 has no 'text'; --column names the fields"),
        ("a.csv", b"a,b\n", "a.csv:1 has 2 columns and no header with 'text'; --column names the columns"),
        ("a.txt", b"\xff\n", "a.txt is not UTF-8 text"),
        ("b.txt", None, "b.txt is not a file"),
    ],
)
def test_what_cannot_be_read_is_named(run, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["predict", str(run), "--file", str(tmp_path / name)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
