"""Where text comes from, in what order, and what is said when there is none."""

import json

import pytest

from llmfast.data.reading import corpus as corpus_module
from llmfast.data.reading.corpus import Corpus, Document


def names(corpus):
    return [document.name for document in corpus]


def test_the_standard_library_is_large_real_and_in_a_fixed_order():
    corpus = Corpus()
    first = names(corpus)
    assert len(first) > 400
    assert first == names(Corpus())
    assert any(name.endswith("dataclasses.py") for name in first)
    assert not any("site-packages" in name or "__pycache__" in name for name in first)


def test_files_folders_and_globs(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.py", ".hidden/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    assert [d.text for d in Corpus([str(tmp_path)])] == ["text of a.md", "text of b.txt", "text of sub/c.py"]
    assert [d.text for d in Corpus([str(tmp_path / "b.txt")])] == ["text of b.txt"]
    assert [d.text for d in Corpus([str(tmp_path / "**" / "*.py")])] == ["text of sub/c.py"]


def test_a_file_that_is_not_utf8_is_skipped_and_counted(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00bad")
    corpus = Corpus([str(tmp_path)])
    for _ in range(2):  # a second pass counts anew
        assert [document.text for document in corpus] == ["good"]
        assert corpus.skipped == [str(tmp_path / "bad.txt")]


WRONG = "a café ".encode() + b"\xe9" + b" and a bar"  # Latin-1 in the middle of UTF-8


@pytest.mark.parametrize("large", [False, True], ids=["whole file", "large file"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_each_policy_for_bytes_that_are_not_utf8(tmp_path, monkeypatch, name, large):
    """Trap: one wrong byte stops a preparation of hours, with the place of a buffer instead of that in the file."""
    if large:
        monkeypatch.setattr(corpus_module, "LARGE_BYTES", 10)
    lines = [b"the first line\n", WRONG + b"\n", b"the last line\n"]
    if name == "a.parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": pa.array(lines, pa.binary()).view(pa.string())}), tmp_path / name)
        place = 8
    elif name == "a.jsonl":
        (tmp_path / name).write_bytes(b"".join(b'{"text": "%s"}\n' % line.strip() for line in lines))
        place = len('{"text": "the first line"}\n{"text": "a café ') + 1
    else:
        monkeypatch.setattr(corpus_module, "PIECE_CHARACTERS", 8)
        (tmp_path / name).write_bytes(b"".join(lines) * (100 if large else 1))
        place = 15 + 8
    source = [str(tmp_path / name)]
    with pytest.raises(ValueError, match=rf"{name}\S* is not UTF-8 text: .* at byte {place}; data.invalid_utf8"):
        list(Corpus(source, invalid_utf8="stop"))
    corpus = Corpus(source, invalid_utf8="replace")
    assert any("a café \ufffd and a bar" in document.text for document in corpus)
    assert corpus.repaired
    assert not corpus.skipped
    corpus = Corpus(source)
    if name == "a.txt" and not large:
        with pytest.raises(ValueError, match="no readable text"):
            list(corpus)
    else:
        assert {document.text.strip() for document in corpus} == {"the first line", "the last line"}
    assert len(corpus.skipped) == (100 if large and name == "a.txt" else 1)


@pytest.mark.parametrize("word", ["word ", "字"], ids=["words", "without spaces"])
@pytest.mark.parametrize("large", [False, True], ids=["whole file", "large file"])
def test_a_text_of_one_line_is_cut_as_well(tmp_path, monkeypatch, word, large):
    """Trap: a corpus on one line is one document, of which nothing can be held out."""
    if large:
        monkeypatch.setattr(corpus_module, "LARGE_BYTES", 10)
    text = word * 50_000
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    documents = list(Corpus([str(tmp_path)]))
    assert "".join(document.text for document in documents) == text
    assert 1 < max(len(document.text) for document in documents) <= 4 * corpus_module.PIECE_CHARACTERS
    assert all(document.text.endswith(word) for document in documents)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_arrow_type_of_text_is_a_text_column(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = pa.array(["one", None, "deux é"])
    if kind == "dictionary":
        texts = texts.dictionary_encode()
    elif not hasattr(pa, kind):
        pytest.skip(f"this PyArrow has no {kind}")
    else:
        texts = texts.cast(getattr(pa, kind)())
    pq.write_table(pa.table({"id": [1, 2, 3], "text": texts}), tmp_path / "a.parquet")
    assert [document.text for document in Corpus([str(tmp_path)])] == ["one", "deux é"]


def test_a_column_may_be_nested(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"id": 1, "doc": {"text": "one", "lang": "en"}}, {"id": 2, "doc": {"text": "deux", "lang": "fr"}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist([*rows, {"id": 3, "doc": None}]), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        corpus = Corpus([str(tmp_path / name)], column="doc.text")
        assert [document.text for document in corpus] == ["one", "deux"]
        with pytest.raises(ValueError, match=r"no text column 'doc\.body'.*doc\.text"):
            list(Corpus([str(tmp_path / name)], column="doc.body"))


def test_few_files_are_cut_into_pieces_that_join_to_the_whole(tmp_path):
    text = "".join(f"line {number} of a long book\n" for number in range(5000))
    (tmp_path / "book.txt").write_text(text)
    pieces = [document.text for document in Corpus([str(tmp_path)])]
    assert len(pieces) > 3
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: "nowhere/*.txt", "nowhere"),
        (lambda folder: str(folder), "holds no files"),
    ],
)
def test_a_source_that_names_nothing_is_refused_by_name(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        Corpus([make(tmp_path)])


def test_no_readable_text_is_an_error_that_says_why(tmp_path):
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xff")
    with pytest.raises(
        ValueError,
        match=r"no readable text in .*: 1 documents .* skipped, the first is .*binary\.txt",
    ):
        list(Corpus([str(tmp_path)]))


def test_the_side_of_a_document_depends_on_its_content_alone():
    held_out = [Document(f"a{n}", f"text {n}").is_held_out(0.1) for n in range(2000)]
    assert held_out == [Document(f"b{n}", f"text {n}").is_held_out(0.1) for n in range(2000)]
    assert 0.07 < sum(held_out) / 2000 < 0.13
