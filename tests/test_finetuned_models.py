"""What measures, shows and uses a model works on finetuned ones of each kind, and refuses classifiers in a sentence."""

import json

import pytest
from small_finetuned import ADAPTERS, write_finetuned

from llmfast.cli import main

LOOKS = ("attention", "lens", "next", "loss", "norms", "neighbors", "ablate", "attribute")


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    return write_finetuned(tmp_path_factory.mktemp("finetuned"))


@pytest.fixture(params=ADAPTERS)
def sft(request, finetuned):
    return finetuned / f"sft-{request.param}" / "run"


@pytest.fixture(params=ADAPTERS)
def labels(request, finetuned):
    return finetuned / f"labels-{request.param}" / "run"


def write_questions(folder):
    choice = {"goal": "say red", "sol1": "red", "sol2": "blue", "label": 0}
    written = {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}
    for name, row in (("piqa", choice), ("gsm8k", written)):
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 2)
    (folder / "text.txt").write_text("The red fox saw the river.\n" * 40)
    return folder


@pytest.mark.parametrize("chat", [False, True])
def test_evaluation(sft, chat, tmp_path):
    """Trap: a template or a base that only training finds."""
    data = write_questions(tmp_path)
    asked = ["--chat", "--few_shot", "1"] if chat else []
    for name, settings in (("piqa", []), ("gsm8k", ["--max_tokens", "3"])):
        out = tmp_path / f"{name}.json"
        words = ["--tasks", name, "--data", str(data / f"{name}.jsonl"), "--out", str(out), *settings, *asked]
        assert main(["eval", str(sft), *words]) == 0
        assert json.loads(out.read_text())["results"][name]["questions"] == 2
    if not chat:
        words = ["--tasks", "text", "--data", str(data / "text.txt"), "--out", str(tmp_path / "text.json")]
        assert main(["eval", str(sft), *words]) == 0


def test_looking_inside(sft, tmp_path):
    for name in LOOKS:
        out = tmp_path / name
        assert main(["look", name, str(sft), "--prompt", "The fox", "--out", str(out)]) == 0
        assert list(out.iterdir())
    text, lens = write_questions(tmp_path) / "text.txt", tmp_path / "lens.safetensors"
    assert main(["look", "tune", str(sft), "--data", str(text), "--steps", "2", "--out", str(lens)]) == 0


def test_generation(sft, capsys):
    assert main(["generate", str(sft), "--prompt", "The fox", "--tokens", "3"]) == 0
    assert main(["generate", str(sft), "--chat", "Say in capitals: fox", "--tokens", "3"]) == 0
    assert main(["model", "info", str(sft)]) == 0
    assert main(["predict", str(sft), "--text", "fox"]) == 2
    assert "holds a language model, not a classifier" in capsys.readouterr().err


def test_classification(labels, tmp_path, capsys):
    assert main(["predict", str(labels), "--text", "I love it"]) == 0
    assert capsys.readouterr().out.split("\t")[0] in ("good", "bad")
    for words in (["eval", "--tasks", "copa"], ["look", "next", "--prompt", "a"], ["generate", "--prompt", "a"]):
        place = 2 if words[0] == "look" else 1
        assert main([*words[:place], str(labels), *words[place:]]) == 2
        error = capsys.readouterr().err
        assert "holds a classifier, not a language model" in error
        assert error.count("\n") == 1


def test_comparison(finetuned, tmp_path):
    runs = [str(finetuned / f"{kind}-{name}" / "run") for kind in ("sft", "labels") for name in ADAPTERS]
    assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    trained = {run["run"]: run["summary"]["trained_parameters"] for run in content["runs"]}
    assert trained[runs[0]] > trained[runs[1]] == trained[runs[2]] > 0


def test_adapters(finetuned, tmp_path, capsys):
    for name, adapter in ADAPTERS.items():
        run, out = str(finetuned / f"sft-{name}" / "run"), str(tmp_path / name)
        for words in (["info", run], ["merge", run, out], ["export", run, f"{out}-peft"]):
            code = main(["adapter", *words])
            if adapter == "none":
                assert code == 2
                assert f"{run} holds a model without an adapter" in capsys.readouterr().err
            else:
                assert code == 0
        if adapter != "none":
            assert main(["generate", out, "--prompt", "The fox", "--tokens", "3"]) == 0
