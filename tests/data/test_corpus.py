"""Where text comes from, in what order, and what is said when there is none."""

import pytest

from llmfast.data.corpus import Corpus, Document


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
    with pytest.raises(ValueError, match=r"no readable text in .*1 files are not UTF-8"):
        list(Corpus([str(tmp_path)]))


def test_the_side_of_a_document_depends_on_its_content_alone():
    held_out = [Document(f"a{n}", f"text {n}").is_held_out(0.1) for n in range(2000)]
    assert held_out == [Document(f"b{n}", f"text {n}").is_held_out(0.1) for n in range(2000)]
    assert 0.07 < sum(held_out) / 2000 < 0.13
