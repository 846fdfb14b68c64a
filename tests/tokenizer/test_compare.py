"""Comparing tokenizers on files."""

import pytest
from shared_data import shared_data

from llmfast import cli
from llmfast.tokenizer import Tokenizer
from llmfast.tokenizer.compare import compare

ENGLISH = "the cat sat on the mat\nthe dog sat on the cat\n"
RUSSIAN = "кошка сидит\nна ковре\n"
JAPANESE = "猫がマットの上に座った。\n\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "en.txt").write_text(ENGLISH, "utf-8")
    (tmp_path / "other.txt").write_text(RUSSIAN + JAPANESE, "utf-8")
    return [tmp_path / "en.txt", tmp_path / "other.txt"]


@pytest.fixture
def tokenizer():
    return Tokenizer.train([ENGLISH], 262)


def test_counts_by_file_and_by_script(files, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    result = compare(files, [tokenizer, tmp_path / "saved"])
    assert result.encodings == ("trained", "saved")
    english, other = result.files
    assert english.tokens == (len(tokenizer.encode(ENGLISH)),) * 2
    assert english.n_bytes == english.n_characters == len(ENGLISH)
    assert english.bytes_per_token[0] == pytest.approx(len(ENGLISH) / english.tokens[0])
    assert other.n_characters == len(RUSSIAN + JAPANESE) < other.n_bytes
    assert {row.text: row.n_characters for row in result.scripts} == {
        "Latin": len(ENGLISH),
        "Cyrillic": len(RUSSIAN),
        "Han with kana": len(JAPANESE) - 1,
        "no letters": 1,
    }
    assert sum(row.n_bytes for row in result.scripts) == sum(row.n_bytes for row in result.files)


def test_files_of_a_label_are_added_up(files, tokenizer, capsys, tmp_path):
    english, other = files
    result = compare([("prose", english), ("other", other), ("prose", english)], [tokenizer])
    assert [row.text for row in result.labels] == ["other", "prose"]
    assert result.labels[1].tokens[0] == 2 * result.files[0].tokens[0]
    assert result.labels[1].bytes_per_token == result.files[0].bytes_per_token
    tokenizer.save(tmp_path / "saved")
    words = [f"English={english}", f"other={other}", "--with", str(tmp_path / "saved")]
    assert cli.main(["tokenizer", "compare", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = lines.index(["label"])
    assert [line[0] for line in lines[at + 1 : at + 3]] == ["English", "other"]
    assert cli.main(["tokenizer", "compare", "English=none.txt", "--with", str(tmp_path / "saved")]) == 2
    assert "none.txt: no such file" in capsys.readouterr().err


def test_the_table_lines_up(files, tokenizer):
    lines = str(compare(files, [tokenizer])).splitlines()
    assert lines[0].split() == ["file", "bytes", "trained", "tokens", "trained", "bytes/token"]
    assert len({len(line) for line in lines if line.endswith(tuple("0123456789"))}) == 1
    assert lines[3:5] == ["", "script of the lines"]
    assert len(lines) == 1 + 2 + 2 + 4


def test_lines_are_told_apart_by_script_and_not_by_language(tmp_path, tokenizer):
    """Trap: letters of a script that is not counted, which are no lack of letters."""
    path = tmp_path / "mixed.txt"
    path.write_text("Guten Tag\nbonjour\nბარ\nბ ab\n漢字\n12\n", "utf-8")
    scripts = {row.text: row.n_characters for row in compare([path], [tokenizer]).scripts}
    assert scripts == {"Latin": 10 + 8 + 5, "other scripts": 4, "Han": 3, "no letters": 3}


def test_published_encodings(monkeypatch, files):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    result = compare(files)
    assert result.encodings == ("gpt2", "cl100k_base", "o200k_base")
    assert result.files[0].tokens[0] == 14
    assert result.files[1].tokens[0] > result.files[1].tokens[2]


def test_bad_input(files, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="at least one text"):
        compare([], [tokenizer])
    with pytest.raises(FileNotFoundError, match=r"'gpt3' is neither a tokenizer's file nor one of .*gpt2"):
        compare(files, ["gpt3"])
    with pytest.raises(FileNotFoundError):
        compare([tmp_path / "missing.txt"], [tokenizer])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        compare([tmp_path / "latin.txt"], [tokenizer])
