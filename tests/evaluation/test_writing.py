"""Answers that a model writes out: how they are checked and counted, and that they are generated reproducibly."""

import itertools
import json
from types import SimpleNamespace

import pytest
from shared_data import shared_data
from small_sft import small_tokenizer, write_model

from llmfast import cli
from llmfast.commands.evaluate import evaluate
from llmfast.data.chat.opening import open_chat
from llmfast.evaluation.tasks import task_named
from llmfast.evaluation.tasks.asking import ask, prompt_tokens_of
from llmfast.evaluation.tasks.rows import Row, rows_of, rows_of_file
from llmfast.evaluation.tasks.writing import check, figures, pass_at
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import save_model

GSM8K = {"question": "1,200 + 34?", "answer": "1200 + 34 = <<1200+34=1234>>1234\n#### 1,234"}
HUMANEVAL = {
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(4) == 8",
    "entry_point": "double",
}


def right(name, row, *replies, chat=False):
    task = task_named(name)
    asked = ask(task, rows_of([row], "rows"))
    return check(task, asked, [[SimpleNamespace(text=reply) for reply in replies]], chat=chat)


@pytest.mark.parametrize(
    ("reply", "strict", "flexible"),
    [
        (" 1234\n#### 1234", True, True),
        (" so\n#### 1,234.", True, True),
        (" It is $1,234.", False, True),
        (" #### 5\n#### 1234", False, True),
        (" #### 1234 and then 5", True, False),
        (" nothing", False, False),
        (" ####1234", False, True),
    ],
)
def test_numbers_are_extracted_as_the_harness_does(reply, strict, flexible):
    assert right("gsm8k", GSM8K, reply) == {"strict": [[strict]], "flexible": [[flexible]]}


def test_the_solutions_of_gsm8k_are_right():
    task = task_named("gsm8k")
    asked = ask(task, rows_of_file(shared_data("reasoning/gsm8k_test.jsonl")))
    solutions = [[SimpleNamespace(text=each.question.solution)] for each in asked]
    assert len(asked) == 1319
    found = figures(check(task, asked, solutions))
    assert {name: figure.value for name, figure in found.items()} == {"strict@1": 1.0, "flexible@1": 1.0}


def test_formulas_are_equal_mathematically():
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'llmfast[eval]'")
    row = {"problem": "Halve 1.", "solution": r"It is $\boxed{\frac{1}{2}}$."}
    replies = (r"So $\boxed{0.5}$.", r"The answer is $\frac{2}{4}$.", r"$\boxed{2}$, not $\frac{1}{2}$", "")
    assert right("math", row, *replies) == {"equal": [[True, True, False, False]]}
    assert right("math", row | {"solution": "as above", "answer": "3"}, r"$\boxed{3}$", "4") == {
        "equal": [[True, False]]
    }


def test_code_must_pass_its_tests():
    assert right("humaneval", HUMANEVAL, "    return x + x\n", "    return x\n", "    !") == {
        "pass": [[True, False, False]]
    }
    block = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    assert right("humaneval", HUMANEVAL, block, "I cannot.", chat=True) == {"pass": [[True, False]]}


@pytest.mark.parametrize(("samples", "good"), [(4, 0), (4, 1), (5, 3), (3, 3)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(samples, good):
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(range(samples), k))
        assert pass_at(k, samples, good) == pytest.approx(sum(min(draw) < good for draw in draws) / len(draws))


def test_figures_are_means_over_problems():
    found = figures({"pass": [[True] * 10, [True] + [False] * 9]})
    assert list(found) == ["pass@1", "pass@10"]
    assert found["pass@1"].value == pytest.approx(0.55)
    assert found["pass@10"].value == 1.0
    assert found["pass@1"].stderr == pytest.approx(0.45)


@pytest.mark.parametrize("name", ["gsm8k", "math", "humaneval"])
def test_a_missing_field_names_the_row(name):
    row = {"gsm8k": GSM8K, "math": {"problem": "p", "solution": "s"}, "humaneval": HUMANEVAL}[name]
    for field in row.keys() - {"canonical_solution"}:
        broken = {key: value for key, value in row.items() if key != field}
        with pytest.raises(ValueError, match="rows, row 1 has no field"):
            next(map(task_named(name).read, rows_of([broken], "rows")))
    with pytest.raises(ValueError, match="row: answer must end in ####"):
        task_named("gsm8k").read(Row(GSM8K | {"answer": "1234"}, "row"))


def write_rows(file, count=5):
    rows = [{"question": f"{n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_command_generates_the_same_for_a_seed(tmp_path):
    """Trap: answers that depend on which others are asked."""
    run, rows = write_model(tmp_path / "run", context=256), write_rows(tmp_path / "rows.jsonl")
    options = {"tasks": ("gsm8k",), "data": (rows,), "samples": 2, "max_tokens": 8, "few_shot": 1, "device": "cpu"}
    first, again, few, other = (
        evaluate(run, **options | more)["results"]["gsm8k"]["records"] for more in ({}, {}, {"limit": 2}, {"seed": 1})
    )
    assert again == first
    assert few == first[:2]
    assert other != first
    assert all(len(set(each["replies"])) == 2 for each in first)
    (written, *_) = sorted((run / "evaluations").glob("gsm8k-*.json"))
    content = json.loads(written.read_text())
    assert content["settings"].keys() >= {"samples", "temperature", "max_tokens", "chat", "seed"}
    assert content["settings"]["temperature"] == 0.8
    assert content["results"]["gsm8k"]["figures"].keys() == {"strict@1", "flexible@1"}


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "run"
    tokenizer = open_chat(small_tokenizer(), "chatml").tokenizer
    model = Decoder(DecoderConfig(vocab_size=tokenizer.n_vocab, width=16, layers=1, heads=2, context=512))
    save_model(folder, model, write_tokenizer=tokenizer.save)
    return folder


def test_a_conversation_has_the_examples_as_its_turns(chat_run, tmp_path):
    encoder = open_chat(small_tokenizer(), "chatml")
    tokenizer = encoder.tokenizer
    (asked, *_) = ask(task_named("gsm8k"), rows_of_file(write_rows(tmp_path / "rows.jsonl")), few_shot=1)
    text = tokenizer.decode(prompt_tokens_of(tokenizer, asked, asked.question.prompt, encoder))
    assert text.count("<|im_start|>user") == 2
    assert text.count("<|im_start|>assistant") == 2
    assert f"{asked.examples[0].answer}<|im_end|>" in text
    assert text.rstrip().endswith("<|im_start|>assistant")
    mmlu = [{"question": f"q{n}", "choices": ["a", "b"], "answer": n % 2, "subject": "s"} for n in range(4)]
    file = tmp_path / "mmlu.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in mmlu))
    for name, rows in (("mmlu", file), ("gsm8k", tmp_path / "rows.jsonl")):
        words = ["eval", str(chat_run), "--tasks", name, "--data", str(rows), "--chat", "--few_shot", "1"]
        assert cli.main(words + (["--max_tokens", "4"] if name == "gsm8k" else [])) == 0


def test_a_prompt_that_does_not_fit_names_its_row(tmp_path, capsys):
    run, rows = write_model(tmp_path / "run", context=32), write_rows(tmp_path / "rows.jsonl")
    words = ["eval", str(run), "--tasks", "gsm8k", "--data", str(rows), "--max_tokens", "4", "--few_shot", "2"]
    assert cli.main(words) == 2
    assert "rows.jsonl:1: the prompt has" in capsys.readouterr().err
    assert cli.main([*words, "--truncate"]) == 0
