"""Several labels per text, numbers, class weights, and splits: what is prepared, trained, evaluated and predicted."""

import json

import numpy as np
import pytest
import torch
from ranks import run_ranks
from sklearn.utils.class_weight import compute_class_weight
from small_labels import classifier_of, evaluate_in, labels_config, new_labels_run, write_labels

from llmfast.cli import main
from llmfast.data.config import LabeledDataConfig
from llmfast.data.examples.labeled import open_labeled, prepare_labeled
from llmfast.data.examples.labeled_text import read_labeled
from llmfast.finetuning.classification import Classification
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_padding
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.decoder import Decoder
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit, save
from llmfast.training.session import new_session, resumed_session

FRUITS = ["apple", "pear", "plum"]


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def fruit_rows(count=240):
    """Texts that name some fruits, which are their labels, and their number, which can be learned too."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        there = [fruit for fruit in FRUITS if draw.random() < 0.4]
        rows.append({"text": f"{number} {' '.join(there) or 'nothing'}", "tags": there, "count": 100 + 10 * len(there)})
    return rows


def fruit_run(folder, problem, **settings):
    label = {"multi_label": "tags", "regression": "count"}[problem]
    data = {"problem": problem, "label": label}
    config = labels_config(write_rows(folder / "fruits.jsonl", fruit_rows()), data=data, **settings)
    return new_session(folder / "run", config, task=Classification, report=lambda line: None)


# --- learning -------------------------------------------------------------------------------------------------------


def test_several_labels_per_text_are_learned_and_predicted(tmp_path, capsys):
    session = fruit_run(tmp_path, "multi_label", steps=150, batch_size=16, learning_rate=2e-2)
    fit(session)
    figures = session.trainer.evaluate()
    assert set(figures) == {"loss", "micro_f1", "macro_f1", "accuracy", "calibration_error"}
    assert figures["micro_f1"] > 0.9
    capsys.readouterr()
    assert main(["predict", str(session.run.folder), "--text", "7 apple plum", "--format", "jsonl"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == [name for name, probability in found["probabilities"].items() if probability > 0.5]
    assert set(found["probabilities"]) == set(FRUITS)


def test_numbers_are_learned_in_their_own_units(tmp_path, capsys):
    """Trap: a head that starts at zero has far to go to 110; it starts at the mean, and its unit is the deviation."""
    session = fruit_run(tmp_path, "regression", steps=150, batch_size=16, learning_rate=2e-2)
    before = session.trainer.evaluate()
    train, validation = session.task.prepared.train.targets, session.task.prepared.validation.targets
    assert before["mse"] == pytest.approx(np.square(validation - train.mean()).mean(), rel=1e-4)
    assert before["loss"] == pytest.approx(before["mse"] / train.var(), rel=1e-4)
    assert np.isnan(before["pearson"])  # every prediction is the mean
    fit(session)
    after = session.trainer.evaluate()
    assert set(after) == {"loss", "mse", "mae", "pearson", "spearman"}
    assert after["loss"] < 0.3
    assert after["pearson"] > 0.85
    capsys.readouterr()
    assert main(["predict", str(session.run.folder), "--text", "7 apple plum"]) == 0
    value, text = capsys.readouterr().out.strip().split("\t")
    assert 95 < float(value) < 135
    assert text == "7 apple plum"


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_every_problem_resumes_to_the_bit_and_is_the_same_in_parts(tmp_path, problem):
    session = fruit_run(tmp_path, problem)
    trainer = session.trainer
    for _ in range(3):
        trainer.step()
    save(session)
    rest = [float(trainer.step().loss) for _ in range(4)]
    resumed = resumed_session(session.run.folder, task=Classification).trainer
    assert [float(resumed.step().loss) for _ in range(4)] == rest
    assert resumed.evaluate() == trainer.evaluate()

    session.config.model = DecoderConfig(**vars(session.config.model) | {"dropout": 0.0})
    whole, parts = (classifier_of(session, accumulate=count).step() for count in (1, 4))
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.gradient_norm, whole.gradient_norm, rtol=1e-5, atol=0)
    assert parts.figures == pytest.approx(whole.figures)


# --- weights of classes ---------------------------------------------------------------------------------------------


def uneven(file, counts=(90, 20, 10)):
    rows = [
        f"the text of class {label} with number {number}\t{'abc'[label]}"
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    file.write_text("\n".join(rows))
    return file


def test_balanced_weights_are_those_of_scikit_learn_and_the_loss_is_their_mean(tmp_path):
    """Trap: the mean of the means of parts, whose texts weigh differently."""
    config = labels_config(uneven(tmp_path / "a.tsv"), class_weights="balanced", batch_size=12)
    config.model = DecoderConfig(**vars(config.model) | {"dropout": 0.0})
    session = new_session(tmp_path / "run", config, task=Classification, report=lambda line: None)
    targets = session.task.prepared.train.targets
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(session.task.problem.class_weights, expected, rtol=1e-6)
    batch = session.trainer.source.next(12)
    with session.trainer.inference() as model:
        logits = model(batch.tokens, batch.lengths).logits
    by_torch = torch.nn.functional.cross_entropy(logits, batch.labels, torch.tensor(expected, dtype=torch.float32))
    whole, parts = (classifier_of(session, accumulate=count).step() for count in (1, 6))
    torch.testing.assert_close(whole.loss, by_torch.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.gradient_norm, whole.gradient_norm, rtol=1e-5, atol=0)
    assert parts.figures == pytest.approx(whole.figures)


def test_given_weights_are_by_name_and_must_fit(tmp_path):
    session = new_labels_run(tmp_path, class_weights={"bad": 3})
    assert session.task.prepared.names == ["bad", "good"]
    assert session.task.problem.class_weights.tolist() == [3, 1]
    assert resumed_session(session.run.folder, task=Classification).config.class_weights == {"bad": 3.0}
    for weights, message in {
        ("awful", 1.0): r"class_weights names the label 'awful'; there are 'bad', 'good'",
        ("bad", 0.0): r"the weight of 'bad' must be positive and finite, got 0",
        ("bad", float("nan")): r"must be positive and finite, got nan",
    }.items():
        config = labels_config(tmp_path / "texts.tsv", class_weights=dict([weights]))
        with pytest.raises(ValueError, match=message):
            new_session(tmp_path / "other", config, task=Classification, report=lambda line: None)
    with pytest.raises(ValueError, match="class_weights are for labels"):
        fruit_run(tmp_path, "regression", class_weights="balanced")


# --- figures over processes -----------------------------------------------------------------------------------------


@pytest.mark.xdist_group("distributed")
def test_figures_of_two_processes_are_those_of_all_texts_at_once(tmp_path):
    """Trap: the mean of the F1 of each process, or of each batch."""
    file = uneven(tmp_path / "a.tsv", (300, 150, 50))
    config = labels_config(file, data={"validation_fraction": 0.4, "test_fraction": 0.0}, class_weights="balanced")
    session = new_session(tmp_path / "run", config, task=Classification, report=lambda line: None)
    config.model = DecoderConfig(**vars(config.model) | {"dropout": 0.0})
    (first, logits), (second, same) = run_ranks(evaluate_in, 2, config, session.run.data)
    assert first == second
    assert logits == same
    alone, expected = evaluate_in(World(), config, session.run.data)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    task = session.task
    outputs, targets = np.array(logits, np.float32), task.prepared.validation.targets
    assert len(outputs) == len(targets) > 128  # more than two batches
    assert first == {"loss": pytest.approx(alone["loss"], rel=1e-5), **task.problem.figures(outputs, targets)}


# --- the last real token --------------------------------------------------------------------------------------------


def small_classifier(**settings):
    decoder = Decoder(DecoderConfig(vocab_size=50, width=16, layers=2, heads=2, context=24, **settings))
    model = SequenceClassifier(decoder, ClassifierConfig(decoder.config, ("a", "b", "c"), 24))
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_padding_on_either_side_changes_nothing(positions):
    """Trap: last-token pooling under left padding, where the text also stands at other positions."""
    model = small_classifier(positions=positions).eval()
    rows = [torch.randint(50, (size,)) for size in (3, 9, 12)]
    alone = torch.cat([model(row[None], torch.tensor([len(row)])).logits for row in rows])
    for padding in (0, 7):
        for side in ("left", "right", "both"):
            tokens, mask = torch.full((3, 14), padding), torch.zeros(3, 14, dtype=torch.int64)
            for place, row in enumerate(rows):
                start = {"left": 14 - len(row), "right": 0, "both": 1}[side]
                tokens[place, start : start + len(row)], mask[place, start : start + len(row)] = row, 1
            torch.testing.assert_close(model(tokens, mask=mask).logits, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="row 1 has no real token"):
        without_padding(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="mask has the shape"):
        without_padding(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 4))
    with pytest.raises(ValueError, match="either lengths or mask"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_padding_does_not_count_when_experts_are_balanced():
    """Trap: the loads and the loss of the routers that are those of padding."""
    model = small_classifier(experts=ExpertsConfig(count=4, active=2, auxiliary_weight=0.1, z_loss_weight=0.1))
    rows, lengths = torch.randint(50, (4, 10)), torch.full((4,), 10)
    short = model(rows, lengths)
    counts = model.decoder.expert_counts.clone()
    model.decoder.expert_counts.zero_()
    padded = model(torch.cat([rows, torch.zeros(4, 14, dtype=torch.int64)], 1), lengths)
    assert torch.equal(model.decoder.expert_counts, counts)
    assert counts.sum(1).tolist() == [4 * 10 * 2] * 2
    torch.testing.assert_close(padded.balancing.total, short.balancing.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(padded.logits, short.logits, rtol=1e-5, atol=1e-5)


# --- what is read ---------------------------------------------------------------------------------------------------


def sides_of(folder, rows, **settings):
    """The texts of each side."""
    folder.mkdir(exist_ok=True)
    config = LabeledDataConfig(sources=(str(write_rows(folder / "a.jsonl", rows)),), vocab_size=257, **settings)
    said = []
    prepare_labeled(config, folder / "out", report=said.append)
    prepared = open_labeled(folder / "out", max_tokens=64)
    texts = {
        name: [split.decode(prepared.tokenizer, place) for place in range(len(split))]
        for name, split in prepared.splits.items()
    }
    return texts, prepared, said


def test_copies_of_a_text_are_on_one_side(tmp_path):
    """Trap: a copy of a training text among the held-out ones; also one with other white space."""
    rows = [{"text": f"text  {number // 3}" + " " * (number % 3), "label": number % 2} for number in range(360)]
    texts, prepared, said = sides_of(tmp_path, rows, validation_fraction=0.2, test_fraction=0.3)
    words = {name: {" ".join(text.split()) for text in side} for name, side in texts.items()}
    assert list(words) == ["train", "validation", "test"]
    assert sum(map(len, words.values())) == len(set.union(*words.values())) == 120
    assert sum(map(len, texts.values())) == 360
    assert 0.35 < len(texts["train"]) / 360 < 0.65
    assert any("240 of 360 texts are copies of others" in line and "120 texts have copies with another label" in line
               for line in said)  # fmt: skip
    reversed_texts, again, _ = sides_of(tmp_path / "again", rows[::-1], validation_fraction=0.2, test_fraction=0.3)
    assert {name: sorted(side) for name, side in reversed_texts.items()} == {n: sorted(s) for n, s in texts.items()}
    assert again.names == prepared.names


def test_there_may_be_no_test_split(tmp_path):
    texts, _, _ = sides_of(tmp_path, [{"text": f"t {n}", "label": n % 2} for n in range(60)], test_fraction=0.0)
    assert list(texts) == ["train", "validation"]
    with pytest.raises(ValueError, match=r"data\.test_fraction must be from 0 to below 1 - data\.validation_fraction"):
        LabeledDataConfig(validation_fraction=0.5, test_fraction=0.5)


def held_out_text(fraction, start="x"):
    from llmfast.data.reading.corpus import is_held_out

    return next(text for n in range(10**4) if is_held_out((text := f"{start} {n}").encode(), fraction))


def test_a_label_that_is_missing_from_a_split_is_named(tmp_path, capsys):
    rows = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(100)]
    rare = {"text": held_out_text(0.1), "label": "rare"}
    with pytest.raises(ValueError, match=r"the train split has no text of 'rare', which no classifier can learn"):
        sides_of(tmp_path, [*rows, rare])
    many = [row for n in range(300) if not _held_out((row := {"text": f"c {n}", "label": "c"})["text"])]
    file = write_rows(tmp_path / "b.jsonl", [*rows, *many])
    said = []
    config = labels_config(file, steps=2, evaluate_every=0, sample_every=0)
    session = new_session(tmp_path / "run", config, task=Classification, report=said.append)
    assert any("no text of 'c': the figures of the validation split say nothing about them" in line for line in said)
    figures = session.trainer.evaluate()
    assert 0 < figures["macro_f1"] <= 1


def _held_out(text):
    from llmfast.data.reading.corpus import is_held_out

    return is_held_out(text.encode(), 0.2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\r\none,1.5\r\ntwo,nan\r\n", r"a\.csv:3 has no number to learn, but 'nan'"),
        ("a.csv", "text,label\none,\n", r"a\.csv:2 has no number to learn, but ''"),
        ("a.csv", "text,label\none,1e999\n", r"a\.csv:2 has no number to learn, but '1e999'"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', r"a\.jsonl:1 has no number to learn, but nan"),
        ("a.jsonl", '{"text": "a", "label": -Infinity}\n', r"a\.jsonl:1 has no number to learn, but -inf"),
        ("a.jsonl", '{"text": "a", "label": null}\n', r"a\.jsonl:1 has no number to learn, but None"),
        ("a.jsonl", '{"text": "a", "label": true}\n', r"a\.jsonl:1 has no number to learn, but True"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', r"a\.jsonl:1 has no number to learn, but \[1\]"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    config = LabeledDataConfig(sources=(str(tmp_path / name),), problem="regression")
    with pytest.raises(ValueError, match=message):
        list(read_labeled(config))


def test_several_labels_are_lists_or_separated(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufefftext,label\r\none,"x, y,x"\r\ntwo,\r\n'.encode())
    (tmp_path / "b.jsonl").write_text('{"text": "three", "label": ["y", 2, true]}\n{"text": "four", "label": []}\n')
    config = LabeledDataConfig(sources=(str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")), problem="multi_label")
    assert [target for _, target in read_labeled(config)] == [("x", "y"), (), ("y", "2", "True"), ()]
    (tmp_path / "c.jsonl").write_text('{"text": "three", "label": null}\n')
    config = LabeledDataConfig(sources=(str(tmp_path / "c.jsonl"),), problem="multi_label")
    with pytest.raises(ValueError, match=r"c\.jsonl:1 has no list of labels, but None"):
        list(read_labeled(config))


def test_labels_keep_their_order_whatever_order_the_texts_have(tmp_path):
    """Traps: labels that are numbers or true and false; an order that is that of the texts."""
    labels = [10, 9, 2.0, True, False, "b", "a"]
    rows = [{"text": f"text {n}", "label": labels[n % 7]} for n in range(210)]
    _, prepared, _ = sides_of(tmp_path, rows)
    assert prepared.names == ["2", "9", "10", "False", "True", "a", "b"]
    _, again, _ = sides_of(tmp_path / "again", rows[::-1])
    assert again.names == prepared.names


def test_parquet_is_read_as_json_is(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["one", "two"], "other": [1, 2], "label": [["x"], []]})
    pq.write_table(table, tmp_path / "a.parquet")
    config = LabeledDataConfig(sources=(str(tmp_path / "a.parquet"),), problem="multi_label")
    assert list(read_labeled(config)) == [("one", ("x",)), ("two", ())]
    config = LabeledDataConfig(sources=(str(tmp_path / "a.parquet"),), label="stars")
    with pytest.raises(ValueError, match=r"a\.parquet\[0\] has no 'text' and 'stars'"):
        list(read_labeled(config))


# --- at the end -----------------------------------------------------------------------------------------------------


def test_a_finished_run_has_its_evaluation_and_its_temperature(tmp_path, capsys):
    config = labels_config(write_labels(tmp_path / "texts.tsv", 400), steps=40, evaluate_every=0, sample_every=0)
    config.calibrate = True
    from llmfast import config as config_files

    config_files.save(config, tmp_path / "config.yaml")
    run = tmp_path / "run"
    assert main(["classify", "--config", str(tmp_path / "config.yaml"), "--out", str(run)]) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert found["labels"] == ["bad", "good"]
    test = found["splits"]["test"]
    assert np.sum(test["confusion"]) == test["texts"]
    assert test["accuracy"] == np.trace(test["confusion"]) / test["texts"]
    assert {"precision", "recall", "f1", "texts"} == set(test["by_label"]["good"])
    validation = found["splits"]["validation"]
    assert validation["calibrated"]["loss"] <= validation["loss"]
    for text in ("true \\ predicted", "calibration error", "precision"):
        assert text in said
    for name in ("confusion", "reliability"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    assert main(["predict", str(run), "--text", "my case is awful", "--format", "jsonl"]) == 0
    cooled = json.loads(capsys.readouterr().out)["probabilities"]
    (checkpoint,) = list((run / "checkpoints").iterdir())[-1:]
    (checkpoint / "calibration.json").unlink()
    assert main(["predict", str(run), "--text", "my case is awful", "--format", "jsonl"]) == 0
    plain = json.loads(capsys.readouterr().out)["probabilities"]
    ratio = [np.log(each["bad"] / each["good"]) for each in (plain, cooled)]
    assert ratio[0] / ratio[1] == pytest.approx(found["temperature"], rel=1e-3)
