"""Texts with labels, in the forms that people have them."""

import gzip

import pytest

from llmfast.data.config import LabeledDataConfig
from llmfast.data.examples.labeled import open_labeled, prepare_labeled
from llmfast.data.examples.labeled_text import read_labeled


def reading(*sources, **settings):
    return LabeledDataConfig(sources=tuple(map(str, sources)), **settings)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", 'it said "no\t0\nyes\t1\n', [('it said "no', "0"), ("yes", "1")]),
        ("a.tsv", "label\ttext\nx\tone\ny\ttwo\n", [("one", "x"), ("two", "y")]),
        (
            "a.csv",
            '\ufefftext,label\r\n"one, two\nthree",x\r\nfour,y\r\n',
            [("one, two\nthree", "x"), ("four", "y")],
        ),
        ("a.csv", "id,text,label\n7,one,x\n", [("one", "x")]),
        (
            "a.jsonl",
            '{"text": "a\\tb", "label": 3}\n\n{"label": true, "text": "c"}\r\n',
            [("a\tb", "3"), ("c", "True")],
        ),
        ("a.jsonl", '{"text": "one\u2028two", "label": "x"}\n', [("one\u2028two", "x")]),
    ],
)
def test_forms(tmp_path, name, content, expected):
    """Traps: quotation marks in tab-separated files, byte-order marks, CRLF, line separators inside JSON strings."""
    (tmp_path / name).write_bytes(content.encode())
    assert list(read_labeled(reading(tmp_path / name))) == expected
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert list(read_labeled(reading(tmp_path / f"{name}.gz"))) == expected


def test_a_file_of_one_label_and_columns_by_name(tmp_path):
    (tmp_path / "a.neg.txt").write_text("one \n\n two\r\n")
    (tmp_path / "b.jsonl").write_text('{"review": "three", "stars": 5}\n')
    found = read_labeled(reading(f"bad={tmp_path / 'a.neg.txt'}", tmp_path / "b.jsonl", text="review", label="stars"))
    assert list(found) == [("one", "bad"), ("two", "bad"), ("three", "5")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"one\t0\ntwo\n", r"a\.tsv:2 has 1 columns where the first row has 2"),
        ("a.csv", b"a,b,c\n", r"a\.csv:1 has 3 columns and no header with 'text' and 'label'"),
        ("a.tsv", b"\t0\n", r"a\.tsv:1 has no text"),
        ("a.tsv", b"one\t \n", r"a\.tsv:1 has no label"),
        ("a.jsonl", b'{"text": "a"}\n', r"a\.jsonl:1 has no 'text' and 'label'"),
        ("a.jsonl", b'{"text": "a", "label": null}\n', r"a\.jsonl:1 has no label, but None"),
        ("a.jsonl", b'{"text": "a", "label": 0.5}\n', r"a\.jsonl:1 has no label, but 0.5"),
        ("a.jsonl", b"{\n", r"a\.jsonl:1 is not JSON"),
        ("a.tsv", b"\xff\xfe\t0\n", "is not UTF-8 text"),
        ("a.txt", b"one\n", "given as LABEL=FILE"),
    ],
)
def test_what_is_no_example_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_labeled(reading(tmp_path / name)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\t0\ntwo\t0\n", "at least two labels"),
        ("", "at least two labels"),
        ("a\t0\na\t1\n", "none is in the"),
    ],
)
def test_data_that_nothing_can_be_learned_from_is_refused(tmp_path, content, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare_labeled(LabeledDataConfig(sources=(str(tmp_path / "a.tsv"),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_are_in_natural_order_and_damage_is_named(tmp_path):
    rows = [f"text number {number}\t{number % 11}" for number in range(200)]
    (tmp_path / "a.tsv").write_text("\n".join(rows))
    config = LabeledDataConfig(sources=(str(tmp_path / "a.tsv"),), vocab_size=270)
    prepare_labeled(config, tmp_path / "out")
    prepared = open_labeled(tmp_path / "out", max_tokens=4)
    assert prepared.names == [str(number) for number in range(11)]
    assert sum(map(len, prepared.splits.values())) == 200
    assert prepared.train.cut == len(prepared.train)
    assert prepared.train.checksum != open_labeled(tmp_path / "out", max_tokens=5).train.checksum
    file = tmp_path / "out" / "train" / "labels.json"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(ValueError, match=r"labels\.json is damaged"):
        open_labeled(tmp_path / "out", max_tokens=4)
