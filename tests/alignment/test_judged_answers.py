"""KTO on answers that were each judged by themselves: what is read, what the loss is, and that it is learned."""

import json

import pytest
import torch
from small_pairs import pair, pairs_config
from small_sft import small_tokenizer

from llmfast import config as config_files
from llmfast.alignment.losses.preference import PairOptions, Pairs, kto, kto_judged
from llmfast.alignment.preference import Preference
from llmfast.cli import main
from llmfast.data.config import PreferenceDataConfig
from llmfast.data.examples.judged import judged_answer, open_judged, prepare_judged
from llmfast.data.examples.preferences import CHOSEN, MISMATCHED
from llmfast.training.loop import save
from llmfast.training.session import new_session, resumed_session


def records(count=40):
    """One answer to each prompt, good and bad in turn."""
    pairs = [pair(number) for number in range(count)]
    return [
        {"prompt": each["prompt"], "completion": each["chosen" if place % 2 else "rejected"], "label": bool(place % 2)}
        for place, each in enumerate(pairs)
    ]


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(folder, **settings):
    file = write(folder, settings.pop("records", records()))
    data = {"sources": (str(file),), "form": "judged"} | settings.pop("data", {})
    losses = settings.pop("losses", {"kto": 1.0})
    config = pairs_config(folder, data=data, losses=losses, **settings)
    return new_session(folder / "run", config, task=Preference, report=lambda line: None)


def test_a_batch_has_the_answer_one_to_another_prompt_and_the_judgment(tmp_path):
    small_tokenizer().save(tmp_path / "tokenizer")
    sources = (str(write(tmp_path, records())),)
    config = PreferenceDataConfig(sources=sources, tokenizer=str(tmp_path / "tokenizer"), validation_fraction=0.3)
    prepare_judged(config, tmp_path / "data", max_tokens=100)
    split = open_judged(tmp_path / "data", max_tokens=100).train
    batch = split.batch(torch.tensor([2, 0]).numpy())
    assert batch.is_good.tolist() == [bool(split.is_good[2]), bool(split.is_good[0])]
    for row, place in enumerate((2, 0)):
        for side, of in ((0, CHOSEN), (1, MISMATCHED)):
            prompt, answer = split.tokens(place, of)
            assert batch.tokens[row, side][batch.is_real[row, side]].tolist() == (prompt + answer)[:-1]
            targets = batch.targets[row, side]
            assert targets[targets != -100].tolist() == answer
            assert targets[: len(prompt) - 1].eq(-100).all()
    assert split.tokens(2, MISMATCHED)[1] == split.tokens(3, CHOSEN)[1]


def test_a_pair_counts_as_a_good_and_a_bad_answer():
    draw = torch.Generator().manual_seed(0)
    sides = [torch.randn(5, generator=draw, dtype=torch.float64) for _ in range(4)]
    pairs, options = Pairs(*sides, torch.ones(5), torch.ones(5)), PairOptions(beta=0.3)
    chosen, rejected = pairs.ratios
    good = torch.ones(5, dtype=torch.bool)
    whole = kto(pairs, options, baseline=0.4)
    parts = kto_judged(chosen, good, options, baseline=0.4) + kto_judged(rejected, ~good, options, baseline=0.4)
    torch.testing.assert_close(whole, parts)
    wanted = (1 - torch.sigmoid(0.3 * (chosen - 0.4))) + (1 - torch.sigmoid(0.3 * (0.4 - rejected)))
    torch.testing.assert_close(whole, wanted)


def test_good_answers_become_likelier_than_bad_ones_and_a_resumed_run_is_the_same(tmp_path):
    session = run(tmp_path, steps=40)
    trainer = session.trainer
    before = trainer.evaluate()
    assert before["loss"] == pytest.approx(0.5)
    for _ in range(30):
        trainer.step()
    after = trainer.evaluate()
    assert after["good_reward"] > after["bad_reward"] + 0.1
    assert after["accuracy"] > 0.6
    save(session)
    rest = [trainer.step() for _ in range(3)]
    resumed = resumed_session(session.run.folder, task=Preference).trainer
    again = [resumed.step() for _ in range(3)]
    assert [float(each.loss) for each in again] == [float(each.loss) for each in rest]
    assert rest[-1].figures.keys() >= {"good_reward", "bad_reward", "accuracy"}


def test_the_command_says_what_was_learned(tmp_path, capsys):
    """Trap: a report of margins, which single answers do not have, after the whole training."""
    data = {"sources": (str(write(tmp_path, records())),), "form": "judged"}
    config = pairs_config(tmp_path, data=data, losses={"kto": 1.0}, steps=2)
    config_files.save(config, tmp_path / "config.yaml")
    assert main(["dpo", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert "good_reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"losses": {"sigmoid": 1.0}}, "data.form judged has no pairs, which the losses sigmoid compare"),
        ({"bad_weight": 0.0}, "bad_weight must be positive"),
        ({"records": [{**row, "label": True} for row in records()]}, "all answers to train on have the label True"),
        ({"records": [*records(), {"prompt": "a", "completion": "b", "label": "yes"}]}, "neither true nor false"),
        ({"records": [pair(0)]}, "a judged answer has a prompt, completion and label"),
        ({"accumulate": 2}, "the loss kto compares the pairs of a batch"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("record", [{"prompt": "p", "label": True}, {"prompt": "p", "completion": "c", "label": 2}])
def test_records_that_hold_no_judged_answer_name_their_place(record):
    with pytest.raises(ValueError, match=r"^a\.json"):
        judged_answer(record, "a.json")
