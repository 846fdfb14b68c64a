"""``llmfast look`` and its subcommands through the command line: their files, what they print, and bad input."""

import json
import math
import re

import numpy as np
import pytest
import torch
from looked_at import model_named

from llmfast.cli import main
from llmfast.evaluation.text import documents, text_figures
from llmfast.integrations.opening import open_model
from llmfast.visualization.colored_text import colored, write_text_page

PROMPT = "The fox saw"
FILES = {
    "attention": {"attention.html", "attention.png", "heads.png", "heads.json"},
    "lens": {"lens.png", "lens.json"},
    "next": {"next.png", "next.json"},
    "loss": {"loss.html", "loss.json"},
    "norms": {"norms.png", "norms.json"},
    "neighbors": {"neighbors.json"},
    "ablate": {"ablation.png", "ablation.json"},
    "attribute": {"attribution.html", "attribution.json"},
}


@pytest.mark.parametrize("name", FILES)
def test_each_command_writes_its_files_and_names_them(name, run, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["look", name, str(run), "--prompt", PROMPT, "--out", str(out)]) == 0
    assert {each.name for each in out.iterdir()} == FILES[name]
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in out.glob("*.png"))
    for file in out.glob("*.json"):
        content = json.loads(file.read_text("utf-8"), parse_constant=pytest.fail)  # no NaN, no infinity
        assert PROMPT in (content.get("prompt"), content.get("text"))
    for file in out.glob("*.html"):
        assert not re.search(r"https?:|src=|href=|@import|url\(|/\*(DATA|STYLE)\*/", file.read_text("utf-8"))
    printed = capsys.readouterr().out
    assert all(file in printed for file in FILES[name])


def test_without_a_word_between_it_shows_the_attention(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["look", str(run), "--prompt", PROMPT, "--layers", "0", "--heads", "1", "--out", str(out)]) == 0
    assert {each.name for each in out.iterdir()} == FILES["attention"]
    assert np.shape(json.loads((out / "heads.json").read_text())["scores"]["induction"]) == (1, 2)
    assert main(["look", "lense", str(run), "--prompt", PROMPT]) == 2
    assert "did you mean look lens?" in capsys.readouterr().err
    assert main(["look", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"look {name}" in listed for name in FILES)
    assert main(["look", str(tmp_path / "missing"), "--prompt", PROMPT]) == 2
    assert "missing" in capsys.readouterr().err


@pytest.mark.parametrize("stride", [None, 5])
def test_the_colors_of_a_text_add_up_to_its_evaluation(stride, run, tmp_path):
    """A text longer than the context: each token counts once, the first one too."""
    file, out = tmp_path / "text.txt", tmp_path / "out"
    file.write_text("The heron taught the naïve poet how to read the weather.\n" * 3, encoding="utf-8")
    arguments = [] if stride is None else ["--stride", str(stride)]
    assert main(["look", "loss", str(run), "--file", str(file), "--out", str(out), *arguments]) == 0
    found = json.loads((out / "loss.json").read_text("utf-8"))
    model, tokenizer = open_model(run)
    expected = text_figures(model, tokenizer, documents([file]), stride=stride)
    assert len(found["losses"]) == len(found["tokens"]) == expected["tokens"] > model.config.context
    assert math.fsum(found["losses"]) == pytest.approx(expected["loss"] * expected["tokens"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)


def test_a_tuned_lens_is_fitted_and_used(run, tmp_path, capsys):
    text, lens, out = tmp_path / "text.txt", tmp_path / "new" / "lens.safetensors", tmp_path / "out"
    text.write_text("The otter saw the lamp by the river and said nothing about it.\n" * 20, encoding="utf-8")
    assert main(["look", "tune", str(run), "--data", str(text), "--steps", "20", "--out", str(lens)]) == 0
    printed = capsys.readouterr().out
    assert f"--tuned {lens}" in printed
    before, after = map(float, re.search(r"embeddings +divergence ([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < before
    assert main(["look", "lens", str(run), "--prompt", PROMPT, "--tuned", str(lens), "--out", str(out)]) == 0
    found = json.loads((out / "lens.json").read_text("utf-8"))
    assert found["kind"] == "tuned lens"
    assert found["rows"] == ["embeddings", "layer 0"]
    assert max(map(abs, found["divergences"][-1])) < 1e-6


def test_what_a_family_without_a_decoder_does_is_shown_too(run, tmp_path):
    """A folder of transformers that llmfast does not import is run by transformers."""
    model = model_named("opt")
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "opt")
    for file in next(run.glob("checkpoints/*")).glob("tokenizer*"):
        (tmp_path / "opt" / file.name).write_bytes(file.read_bytes())
    arguments = [str(tmp_path / "opt"), "--prompt", PROMPT, "--out", str(tmp_path / "out")]
    for name in FILES:
        assert main(["look", name, *arguments]) == 0
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert np.shape(found["change_without_head"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lens"], "--prompt"),
        (["lens", "--prompt", "fox " * 60], "the model's context is 16"),
        (["lens", "--prompt", "fox", "--top", "0"], "top must be at least 1"),
        (["lens", "--prompt", "fox", "--tuned", "none.safetensors"], "llmfast look tune"),
        (["next", "--prompt", "fox", "--count", "0"], "count must be at least 1"),
        (["loss"], "--file"),
        (["loss", "--prompt", "fox", "--stride", "17"], "stride must be from 1 to the model's context 16"),
        (["loss", "--file", "none.txt"], "none.txt is not a file"),
        (["tune"], "--data"),
        (["tune", "--data", "none.txt"], "none.txt is not a file"),
        (["neighbors"], "--prompt"),
        (["ablate", "--prompt", "The fox", "--heads", "2"], "no head 2; choose from 0 to 1"),
        (["ablate", "--prompt", "The fox", "--layers", "1"], "no layer 1; choose from 0 to 0"),
        (["attribute", "--prompt", "fox", "--token", "The fox saw it"], "must be one token"),
        (["attribute", "--prompt", "fox", "--steps", "0"], "steps must be at least 1"),
        (["norms", "--prompt", "fox", "--device", "cuda"], "finds no GPU"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, *rest = arguments
    out = tmp_path / ("out.safetensors" if name == "tune" else "out")
    assert main(["look", name, str(run), *rest, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_page_of_text_holds_any_text(tmp_path):
    """Trap: a token that ends the script."""
    texts = ["</script><b>", "$x$", "\\n", "雪", "<!--"]
    values = [None, 0.5, -2.0, 3.0, 0.0]
    write_text_page(texts, values, tmp_path / "page.html", title="<i>", summary="s", unit="nats", full=3.0)
    page = (tmp_path / "page.html").read_text("utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert (data["texts"], data["values"], data["signed"]) == (texts, values, True)


def test_text_in_a_terminal_is_stronger_where_numbers_are_larger():
    shown = colored(["a", "b", "c", "d"], [None, 1.0, 3.0, -3.0], full=3.0)
    assert shown.plain == "abcd"
    styles = [str(span.style) for span in shown.spans]
    assert len(set(styles)) == 3
    assert "rgb(255,176,0)" in styles[1]
    assert styles[2].startswith("underline")
