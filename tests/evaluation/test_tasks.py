"""Tasks: texts of questions, choice by four measures, few-shot examples, and the command with its errors."""

import json
import math

import pytest
import torch
from shared_data import shared_data
from small_sft import small_tokenizer, write_model

from llmfast import cli
from llmfast.evaluation.tasks import TASKS, task_named
from llmfast.evaluation.tasks.asking import ask
from llmfast.evaluation.tasks.choosing import measure
from llmfast.evaluation.tasks.figures import mean
from llmfast.evaluation.tasks.rows import Row, rows_of, rows_of_file
from llmfast.integrations.opening import open_model

# name: (a row as published, the prompts and answers that the harness makes of it, the right one)
SHAPES = {
    "hellaswag": (
        {"activity_label": "A", "ctx_a": "b [x]c", "ctx_b": "the d", "endings": ["e [title] f", "g"], "label": "1"},
        ["A: b c The d"] * 2,
        ["e. f", "g"],
        1,
    ),
    "hellaswag_plain": ({"ctx": "b [x]c", "endings": ["e", "g"], "label": 0}, ["b [x]c"] * 2, ["e", "g"], 0),
    "piqa": ({"goal": "g", "sol1": "a", "sol2": "b", "label": 1}, ["Question: g\nAnswer:"] * 2, ["a", "b"], 1),
    "arc_easy": (
        {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        ["Question: q\nAnswer:"] * 3,
        ["x", "y", "z"],
        2,
    ),
    "copa": (
        {"premise": "It rained.", "question": "effect", "choice1": "I stayed.", "choice2": "She ran.", "label": 0},
        ["It rained therefore"] * 2,
        ["i stayed.", "she ran."],
        0,
    ),
    "winogrande": (
        {"sentence": "Ann told Bo that _ won.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        ["Ann told Bo that Ann", "Ann told Bo that Bo"],
        ["won.", "won."],
        1,
    ),
    "mmlu": (
        {"question": " q ", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "high_school"},
        ["q\nA. a\nB. b\nC. c\nD. d\nAnswer:"] * 4,
        ["A", "B", "C", "D"],
        2,
    ),
    "boolq": (
        {"passage": "p", "question": "is it", "answer": True},
        ["p\nQuestion: is it?\nAnswer:"] * 2,
        ["no", "yes"],
        1,
    ),
    "lambada": ({"text": "the red fox"}, ["the red"], ["fox"], 0),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model", context=256)


@pytest.mark.parametrize("name", SHAPES)
def test_texts_are_put_together_as_the_harness_does(name):
    row, prompts, answers, label = SHAPES[name]
    question = task_named(name).read(Row(row, "row"))
    assert (list(question.prompts), list(question.answers), question.label) == (prompts, answers, label)


def test_other_published_forms_of_a_row_are_the_same_question():
    """The files of ARC's authors, and LAMBADA in llm-foundry."""
    choices = [{"text": text, "label": label} for text, label in zip("xyz", "123", strict=True)]
    forms = {
        "arc_easy": {"id": "1", "question": {"stem": "q", "choices": choices}, "answerKey": "3"},
        "lambada": {"context": "the red", "continuation": "fox"},
    }
    for name, row in forms.items():
        read = task_named(name).read
        assert read(Row(row, "row")) == read(Row(SHAPES[name][0], "row"))
    broken = forms["arc_easy"]["question"] | {"choices": [{"text": "x"}]}
    with pytest.raises(ValueError, match="row, question, choices: label must be a list of texts"):
        task_named("arc_easy").read(Row({"question": broken, "answerKey": "1"}, "row"))


def test_labels_in_a_file_of_their_own_are_read_from_beside(tmp_path):
    """PIQA as its authors publish it. Trap: a file of labels that belongs to other rows."""
    row = {name: text for name, text in SHAPES["piqa"][0].items() if name != "label"}
    file, labels = tmp_path / "valid.jsonl", tmp_path / "valid-labels.lst"
    file.write_text((json.dumps(row) + "\n") * 3)
    labels.write_text("1\n0\n1\n")
    assert [each.question.label for each in ask(task_named("piqa"), rows_of_file(file))] == [1, 0, 1]
    for text, words in (("1\n0\n", "2 labels, fewer than there are rows"), ("1\n" * 4, "4 labels, more than")):
        labels.write_text(text)
        with pytest.raises(ValueError, match=words):
            ask(task_named("piqa"), rows_of_file(file))


@pytest.mark.parametrize("name", SHAPES)
def test_a_missing_field_names_the_row(name):
    row = SHAPES[name][0]
    for field in set(row) - {"subject"}:
        broken = {key: value for key, value in row.items() if key != field}
        with pytest.raises(ValueError, match=r"rows, row 1 has no field \w+; its fields are"):
            next(map(task_named(name).read, rows_of([broken], "rows")))
    for field in {"label", "answer", "answerKey"} & set(row):
        with pytest.raises(ValueError, match=f"rows, row 1: {field} "):
            next(map(task_named(name).read, rows_of([row | {field: "9"}], "rows")))


def test_published_files_are_read_whole():
    counts = {"arc_easy": 2376, "copa": 100, "piqa": 1838, "winogrande": 1267}
    for name, count in counts.items():
        rows = rows_of_file(shared_data(f"multiple_choice/{name}.jsonl"))
        assert len(ask(task_named(name), rows)) == count


def write_rows(file, count=12):
    words = ["red", "green", "blue", "stone", "river", "lamp"]
    rows = [
        {
            "goal": f"say {words[n % 6]} {n}",
            "sol1": words[n % 5] * 3,
            "sol2": f"{words[(n + 1) % 6]} né",
            "label": n % 2,
        }
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@torch.no_grad()
def test_the_four_measures_are_the_definition(run, tmp_path):
    model, tokenizer = open_model(run)
    asked = ask(task_named("piqa"), rows_of_file(write_rows(tmp_path / "rows.jsonl")))
    right = {name: [] for name in ("acc", "acc_char", "acc_byte", "acc_token")}
    for each in asked:
        scores = {name: [] for name in right}
        for prompt, answer in zip(each.question.prompts, each.question.answers, strict=True):
            before, after = [tokenizer.eot_token, *tokenizer.encode(prompt)], tokenizer.encode(f" {answer}")
            losses = model(torch.tensor([before + after]))[0].log_softmax(-1)
            places = range(len(before) - 1, len(before) + len(after) - 1)
            total = sum(losses[place, token].item() for place, token in zip(places, after, strict=True))
            sizes = (1, len(answer), len(answer.encode()), len(after))
            for name, length in zip(right, sizes, strict=True):
                scores[name].append(total / length)
        for name, values in scores.items():
            right[name].append(float(values.index(max(values)) == each.question.label))
    found = measure(model, tokenizer, task_named("piqa"), asked)
    assert {name: figure.value for name, figure in found.items()} == {n: sum(v) / len(v) for n, v in right.items()}
    p = found["acc"].value
    assert found["acc"].stderr == pytest.approx(math.sqrt(p * (1 - p) / (len(asked) - 1)))
    assert mean([1.0]).stderr is None


def test_examples_are_others_and_the_same_for_a_seed(tmp_path):
    """Trap: the question among its own examples, and examples that change with the limit."""
    file, task = write_rows(tmp_path / "rows.jsonl"), TASKS["piqa"]
    asked = ask(task, rows_of_file(file), few_shot=3, seed=1)
    for each in asked:
        assert each.opening.count("Question: ") == 3
        assert each.opening.endswith("\n\n")
        assert f"{each.question.prompts[0]} " not in each.opening
    assert ask(task, rows_of_file(file), few_shot=3, seed=1, limit=4) == asked[:4]
    assert ask(task, rows_of_file(file), few_shot=3, seed=2) != asked
    with pytest.raises(ValueError, match="few_shot is 12, but there are 11 other rows"):
        ask(task, rows_of_file(file), few_shot=12)


def test_examples_of_a_subject_are_its_first_ones():
    """Trap: few-shot MMLU with examples of other subjects."""
    rows = [
        SHAPES["mmlu"][0] | {"subject": subject, "question": f"{subject} {n}"} for n in range(3) for subject in "ab"
    ]
    for examples in (None, rows_of(rows[2:], "dev")):
        asked = ask(
            TASKS["mmlu"], rows_of(rows[:2] if examples else rows, "rows"), few_shot=2, examples=examples, seed=3
        )
        for each in asked:
            subject = each.question.prompts[0][0]
            shown = [example.prompts[0][:3] for example in each.examples]
            assert shown == [f"{subject} {n}" for n in range(3) if f"{subject} {n}" != each.question.prompts[0][:3]][:2]
    with pytest.raises(ValueError, match="few_shot is 3, but there are 2 other rows of the subject a"):
        ask(TASKS["mmlu"], rows_of(rows, "rows"), few_shot=3)


def test_the_command_writes_what_decided_beside_the_run(run, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl")
    assert cli.main(["eval", str(run), "--tasks", "piqa", "--data", str(file), "--limit", "5", "--few_shot", "1"]) == 0
    assert "acc_char" in capsys.readouterr().out
    (written,) = (run / "evaluations").glob("piqa-*.json")
    content = json.loads(written.read_text())
    assert content["settings"] == {"limit": 5, "few_shot": 1, "seed": 0, "truncate": False, "chat": False}
    assert content["tokenizer_fingerprint"] == small_tokenizer().fingerprint
    assert list(content["weights_sha256"]) == ["model.safetensors"]
    assert content["results"]["piqa"]["questions"] == 5
    assert content["results"]["piqa"]["beginning_of_text"] == "<|endoftext|>"


@torch.no_grad()
def test_bits_per_byte_of_text_are_the_definition(run, tmp_path):
    model, tokenizer = open_model(run)
    file, out = tmp_path / "text.txt", tmp_path / "out.json"
    text = "Say in capitals: the red fox, the gréen lamp. " * 4
    file.write_text(text, encoding="utf-8")
    assert cli.main(["eval", str(run), "--tasks", "text", "--data", str(file), "--out", str(out)]) == 0
    tokens = [tokenizer.eot_token, *tokenizer.encode(text)]
    assert len(tokens) <= 257
    losses = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    nats = -sum(losses[place, token].item() for place, token in enumerate(tokens[1:]))
    result = json.loads(out.read_text())["results"]["text"]
    assert result["figures"]["bits_per_byte"]["value"] == pytest.approx(
        nats / math.log(2) / len(text.encode()), rel=1e-5
    )
    assert result["figures"]["tokens"]["value"] == len(tokens) - 1
    assert result["beginning_of_text"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "pica"], "there is no task 'pica'; did you mean piqa?"),
        (["--tasks", "text"], "task text needs what to read: --data FILE"),
        (["--tasks", "piqa", "--data", "none.jsonl"], "data: none.jsonl is not a file"),
        (["--tasks", "piqa", "--data", "ROWS", "--few_shot", "9"], "more than the model's context 256 holds"),
        (["--tasks", "copa", "--data", "ROWS"], "rows.jsonl:1 has no field question"),
        (["--tasks", "piqa,copa", "--data", "ROWS"], "data holds the rows of one task"),
        (["--tasks", "piqa", "copa", "--data", "ROWS"], "data holds the rows of one task"),
        (["--tasks", "text", "--data", "ROWS", "--few_shot", "1"], "few_shot is for questions"),
        (["--tasks", "piqa", "--data", "ROWS", "--limit", "0"], "limit must be at least 1"),
        (["--tasks", "piqa", "--data", "ROWS", "--samples", "2"], "samples is for tasks whose answers are generated"),
        (["--tasks", "piqa", "--data", "ROWS", "--chat"], "the tokenizer has no chat template"),
        (["--tasks", "gsm8k", "--data", "ROWS"], "rows.jsonl:1 has no field answer"),
        (["--tasks", "gsm8k", "--samples", "2", "--temperature", "0"], "would all be equal"),
        (["--tasks", "piqa", "--data", "ROWS", "--contamination", "none"], "none"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, capsys, words, sentence):
    rows = str(write_rows(tmp_path / "rows.jsonl"))
    assert cli.main(["eval", str(run), *[rows if word == "ROWS" else word for word in words]]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_task_whose_data_is_not_there_says_how_to_get_it(run, capsys, monkeypatch):
    def absent(hub, split, *, source):
        raise ValueError(f"dataset {source} cannot be loaded: no connection")

    monkeypatch.setattr("llmfast.data.reading.datasets_hub.load_split", absent)
    assert cli.main(["eval", str(run), "--tasks", "piqa"]) == 2
    error = capsys.readouterr().err
    assert "task piqa: dataset baber/piqa:validation cannot be loaded" in error
    assert "--data FILE" in error


def test_a_damaged_run_is_refused(tmp_path, capsys):
    run = write_model(tmp_path / "damaged")
    (run / "model.safetensors").write_bytes(b"x" * 100)
    assert cli.main(["eval", str(run), "--tasks", "piqa", "--data", str(write_rows(tmp_path / "rows.jsonl"))]) == 2
    assert "is damaged" in capsys.readouterr().err
