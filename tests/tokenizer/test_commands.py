"""llmfast tokenizer train, encode, decode, info, compare: through the command line, as a person would."""

import io
import sys

import pytest

from llmfast import cli
from llmfast.data.shards import TokenShards
from llmfast.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog über sleeps 🙂\n" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer that the command line trained."""
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["--data", str(root / "text.txt"), "--vocab_size", "300"]
    assert cli.main(["tokenizer", "train", str(root / "out"), *arguments]) == 0
    return root / "out"


def run(*arguments) -> int:
    return cli.main(["tokenizer", *map(str, arguments)])


def give_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_trained_tokenizer_loads_and_has_the_size_asked_for(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.n_vocab == 300
    assert tokenizer.decode(tokenizer.encode_ordinary(TEXT)) == TEXT


def test_encode_and_decode_round_trip(folder, tmp_path, capfdbinary, monkeypatch):
    text = "the lazy über dog 🙂 \n\n"
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8", newline="")
    give_input(monkeypatch, text.encode())
    assert run("encode", folder, "--text", text) == 0
    assert run("encode", folder, file) == 0
    assert run("encode", folder) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert lines[0] == lines[1] == lines[2]

    (tmp_path / "ids.txt").write_bytes(lines[0])
    give_input(monkeypatch, b"[" + lines[0].replace(b" ", b", ") + b"]")
    assert run("decode", folder, "--ids", *lines[0].decode().split()) == 0
    assert run("decode", folder, "--file", tmp_path / "ids.txt") == 0
    assert run("decode", folder) == 0
    assert capfdbinary.readouterr().out == text.encode() * 3


def test_special_tokens_are_ordinary_text_unless_asked_for(folder, capsys):
    assert run("encode", folder, "--text", "<|endoftext|>") == 0
    assert run("encode", folder, "--text", "<|endoftext|>", "--special") == 0
    ordinary, special = capsys.readouterr().out.splitlines()
    assert len(ordinary.split()) > 1
    assert special == str(Tokenizer.load(folder).eot_token)


def test_files_become_shards(folder, tmp_path, capsys):
    """Each file is a document that ends with the end-of-text token, and the shard begins with one."""
    tokenizer = Tokenizer.load(folder)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "b.txt").write_text("the <|endoftext|>", encoding="utf-8")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert run("encode", folder, *files, "--out", tmp_path / "shards") == 0
    shards = TokenShards(tmp_path / "shards")
    end = tokenizer.eot_token
    first, second = (tokenizer.encode_ordinary(file.read_text("utf-8")) for file in files)
    assert shards.read(0, len(shards)).tolist() == [end, *first, end, *second, end]
    assert (shards.documents, shards.fingerprint) == (2, tokenizer.fingerprint)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'shards'}: {len(shards):,} tokens, 2 documents")


def test_compare_counts_by_file_and_by_script(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the dog\nсобака\n", encoding="utf-8")
    assert run("compare", tmp_path / "text.txt", "--with", f"{folder},{folder / 'tokenizer.json'}") == 0
    header, file, _, title, cyrillic, latin = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "bytes", *["out", "tokens", "out", "bytes/token"] * 2]
    assert title == "script of the lines"
    assert file.startswith(str(tmp_path / "text.txt"))
    assert (cyrillic.split()[:2], latin.split()[:2]) == (["Cyrillic", "13"], ["Latin", "8"])


def test_info_shows_size_and_special_tokens(folder, capsys):
    assert run("info", folder) == 0
    out = capsys.readouterr().out
    assert "300 tokens: 299 ordinary, 1 special" in out
    assert "<|endoftext|> = 299" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "{tmp}/out", "--data", "{tmp}/absent"], "absent"),
        (["train", "{tmp}/out", "--data", "{tmp}/empty.txt"], "no readable text"),
        (["train", "{tmp}/out", "--data", "{tmp}/text.txt", "--vocab_size", "255"], "vocab_size"),
        (
            ["train", "{tmp}/out", "--data", "{tmp}/text.txt", "--vocab_size", "99999"],
            "the text is too small",
        ),
        (["train", "{tmp}/out", "--data", "{tmp}/text.txt", "--pattern", "gpt3"], "gpt3"),
        (["encode", "{tmp}/absent", "--text", "x"], "absent"),
        (["encode", "{folder}", "{tmp}/absent"], "absent: no such file or directory"),
        (["encode", "{folder}", "{tmp}/binary"], "binary is not UTF-8 text: byte 1 is wrong"),
        (["encode", "{folder}", "{tmp}/text.txt", "--text", "x"], "not both"),
        (["encode", "{folder}", "--out", "{tmp}/out"], "name some"),
        (["encode", "{folder}", "{tmp}/text.txt", "--special", "--out", "{tmp}/out"], "leave out --special"),
        (["encode", "{folder}", "{tmp}/empty.txt", "--out", "{tmp}/out"], "all files are empty"),
        (["encode", "{folder}", "{tmp}/absent", "--out", "{tmp}/out"], "absent: no such file or directory"),
        (["encode", "{folder}", "{tmp}/text.txt", "--out", "{tmp}"], "is not empty"),
        (["compare"], "at least one text"),
        (["compare", "{tmp}/text.txt", "--with", "gpt3"], "'gpt3' is neither"),
        (["compare", "{tmp}/binary", "--with", "{folder}"], "binary is not UTF-8"),
        (["decode", "{folder}", "--ids", "1", "300"], "300 is not a token id; they go from 0 to 299"),
        (["decode", "{folder}", "--file", "{tmp}/text.txt"], "'the' is not a token id"),
        (["decode", "{folder}", "--ids", "99999999999999999999"], "99999999999999999999 is not a token id"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, says, folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary").write_bytes(b"a\xff\xff")
    filled = [argument.format(tmp=tmp_path, folder=folder) for argument in arguments]
    assert run(*filled) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("llmfast: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
