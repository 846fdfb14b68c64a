"""llmfast tokenizer train, encode, decode, info: through the command line, as a person would."""

import io
import sys

import pytest

from llmfast import cli
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
    assert run("encode", folder, "--file", file) == 0
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
        (["encode", "{folder}", "--file", "{tmp}/absent"], "absent: no such file or directory"),
        (["encode", "{folder}", "--file", "{tmp}/binary"], "binary is not UTF-8 text: byte 1 is wrong"),
        (["encode", "{folder}", "--text", "x", "--file", "{tmp}/text.txt"], "not both"),
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
