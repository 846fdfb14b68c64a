"""Reward models of judged steps and answers: what is read, where the model is read, and that it is learned."""

import json

import pytest
import torch
from small_pairs import pairs_config, pairs_trainer
from small_sft import WORDS, small_tokenizer

from llmfast import config as config_files
from llmfast.alignment.reward_model import RewardModeling
from llmfast.alignment.rewards.build import named_reward
from llmfast.alignment.rewards.functions import Prompt
from llmfast.alignment.step_rewards import found_first_errors
from llmfast.cli import main
from llmfast.data.config import PreferenceDataConfig
from llmfast.data.examples.steps import judged_steps, open_steps, prepare_steps, step_ends
from llmfast.finetuning.predict import load_classifier
from llmfast.training.loop import save
from llmfast.training.session import new_session, resumed_session


def record(number):
    """Words to be said in capitals, line by line; from some line on they are not."""
    words = [WORDS[(number + place) % len(WORDS)] for place in range(2 + number % 3)]
    right = number % (len(words) + 1)
    steps = [word.upper() if place < right else word for place, word in enumerate(words)]
    return {"prompt": f"Number {number}:", "completions": steps, "labels": [n < right for n in range(len(steps))]}


RECORDS = [record(number) for number in range(60)]
WHOLE = [
    {"prompt": each["prompt"], "completion": "\n".join(each["completions"]), "label": all(each["labels"])}
    for each in RECORDS
]


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run_config(folder, rows=RECORDS, form="steps", **settings):
    data = {"sources": (write(folder, rows),), "form": form} | settings.pop("data", {})
    return pairs_config(folder, "reward", data=data, model={"width": 32}, **settings)


def run(folder, rows=RECORDS, form="steps", **settings):
    config = run_config(folder, rows, form, **settings)
    return new_session(folder / "run", config, task=RewardModeling, report=lambda line: None)


def prepared(folder, rows, lines=None, **settings):
    small_tokenizer().save(folder / "tokenizer")
    data = {"sources": (write(folder, rows),), "form": "steps", "template": "chatml", "validation_fraction": 0.3}
    config = PreferenceDataConfig(**data, tokenizer=str(folder / "tokenizer"))
    most = settings.get("max_tokens", 100)
    prepare_steps(config, folder / "data", max_tokens=most, report=[].append if lines is None else lines.append)
    return open_steps(folder / "data", max_tokens=most)


def test_labels_stand_at_the_last_tokens_of_steps(tmp_path):
    opened = prepared(tmp_path, RECORDS)
    tokenizer, split = opened.tokenizer, opened.train
    batch = split.batch(torch.arange(len(split)).numpy())
    by_prompt = {each["prompt"]: each for each in RECORDS}
    for row in range(len(split)):
        tokens, ends = batch.tokens[row].tolist(), batch.is_end[row].nonzero().flatten().tolist()
        text = tokenizer.decode(tokens[: ends[-1] + 1])
        given = next(each for prompt, each in by_prompt.items() if prompt in text)
        assert batch.labels[row, batch.is_end[row]].tolist() == [float(each) for each in given["labels"]]
        assert tokens[ends[-1]] == opened.chat.end_token
        assert int(batch.is_real[row].sum()) == ends[-1] + 1
        for end, step in zip(ends[:-1], given["completions"], strict=False):
            assert tokenizer.decode(tokens[: end + 1]).endswith(f"{step}\n")


def test_steps_behind_the_cut_are_left_out_and_counted(tmp_path):
    whole = prepared(tmp_path / "whole", RECORDS).train
    ends = [place for row in range(len(whole)) for place in whole.batch(torch.tensor([row]).numpy()).is_end.nonzero()]
    most = int(torch.stack(ends)[:, 1].median())
    lines = []
    cut = prepared(tmp_path / "cut", RECORDS, lines, max_tokens=most).train
    assert sum(map(len, cut.labels)) == sum(int(place[1]) <= most for place in ends)
    assert any("steps, which end behind data.max_tokens" in line for line in lines)
    assert any("of which no step ends within data.max_tokens" in line for line in lines)


def test_an_answer_ends_a_step_with_its_end_and_empty_lines_are_none():
    tokenizer = small_tokenizer()
    end = tokenizer.eot_token

    def ends(text, *more):
        return step_ends([*tokenizer.encode_ordinary(text), *more], tokenizer)

    count = len(tokenizer.encode_ordinary("red\n\nfox"))
    assert ends("red\n\nfox", end)[-1] == count
    assert len(ends("red\n\nfox", end)) == len(ends("red\n\nfox")) == 2
    assert len(ends("red\n", end)) == 1
    assert ends("\n", end) == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, "judged steps are lists, completions and labels"),
        ({"prompt": "p", "completions": ["a"], "labels": [True, False]}, "1 completions and 2 labels"),
        ({"prompt": "p", "completions": [], "labels": []}, "each step needs one label"),
        ({"prompt": "p", "completions": ["a\nb"], "labels": [True]}, r"completions\[0\] is 'a\\nb': a step is a line"),
        ({"prompt": "p", "completions": ["a", " "], "labels": [True, True]}, r"completions\[1\]"),
        ({"prompt": "p", "completions": ["a"], "labels": [-1]}, r"labels\[0\] is -1, which is neither true"),
        ({"prompt": "p", "completions": ["a"], "labels": ["+"]}, r"labels\[0\] is '\+'"),
        ({"completions": ["a"], "labels": [True]}, "there is no prompt"),
    ],
)
def test_records_without_judged_steps_name_their_place(row, sentence):
    with pytest.raises(ValueError, match=rf"^a\.json.*{sentence}"):
        judged_steps(row, "a.json")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"margin": 1.0}, "margin 1.0 is between two answers"),
        ({"rows": [{**each, "labels": [True] * len(each["labels"])} for each in RECORDS]}, "have the label 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, **settings)


def test_steps_are_for_reward_models(tmp_path):
    with pytest.raises(ValueError, match=r"data\.form steps is for llmfast reward"):
        pairs_config(tmp_path, "dpo", data={"form": "steps"})


def test_wrong_steps_are_found_and_a_resumed_run_is_the_same(tmp_path):
    session = run(tmp_path, steps=60, batch_size=16)
    trainer = session.trainer
    before = trainer.evaluate()
    assert before["loss"] == pytest.approx(0.6931472, abs=1e-6)
    for _ in range(50):
        trainer.step()
    after = trainer.evaluate()
    assert after["accuracy"] > 0.9
    assert after["first_errors_found"] > 0.8
    assert after["right_probability"] > after["wrong_probability"] + 0.5
    save(session)
    rest = [trainer.step() for _ in range(3)]
    resumed = resumed_session(session.run.folder, task=RewardModeling).trainer
    again = [resumed.step() for _ in range(3)]
    assert [float(each.loss) for each in again] == [float(each.loss) for each in rest]


def test_a_batch_in_parts_trains_like_the_whole(tmp_path):
    """Trap: a mean of means, where answers have different numbers of steps."""
    session = run(tmp_path, batch_size=16)
    trainers = [session.trainer, pairs_trainer(session, accumulate=4)]
    whole, parts = ([float(trainer.step().loss) for _ in range(4)] for trainer in trainers)
    assert whole == pytest.approx(parts, abs=1e-5)


def test_the_first_wrong_step_is_what_counts():
    logits = torch.tensor([[1.0, -1, -1], [1, 1, 9], [-1, 1, 0], [1, 1, 1]])
    labels = torch.tensor([[1.0, 0, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    is_step = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool()
    assert found_first_errors(logits, labels, is_step).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(("form", "rows"), [("steps", RECORDS), ("judged", WHOLE)])
def test_the_command_makes_a_reward(tmp_path, capsys, form, rows):
    config_files.save(run_config(tmp_path, rows, form, steps=4), tmp_path / "config.yaml")
    run = tmp_path / "run"
    assert main(["reward", "--config", str(tmp_path / "config.yaml"), "--out", str(run)]) == 0
    assert "validation  accuracy 0." in capsys.readouterr().out
    model, tokenizer = load_classifier(run)
    asked, answer = (tokenizer.encode_ordinary(text) for text in ("Number 3:", "RED\nfox\nBLUE"))
    answer.append(tokenizer.eot_token)

    def value_after(count):
        ids = torch.tensor([[*asked, *answer[:count]]])
        return model(ids, torch.tensor([ids.shape[1]])).logits.item()

    text = tokenizer.decode(answer)
    found = named_reward(f"{'steps' if form == 'steps' else 'model'}:{run}")
    value = found(Prompt("Number 3:", asked), answer, text, "")
    if form == "judged":
        assert value == pytest.approx(value_after(len(answer)), abs=1e-6)
    else:
        places = step_ends(answer, tokenizer)
        assert len(places) == 3
        chances = [torch.tensor(value_after(place + 1)).sigmoid().item() for place in places]
        assert value == pytest.approx(min(chances), abs=1e-6)
        assert found(Prompt("Number 3:", asked), [tokenizer.eot_token], "", "") == 0
