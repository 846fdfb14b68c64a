"""Sequence classification on the step loop: end to end, resumed to the bit, on several processes, on a frozen base."""

import dataclasses
import io
import itertools
import shutil

import pytest
import torch
from ranks import run_ranks
from small_labels import classifier_of, labels_config, new_labels_run, train_classifier, write_labels
from small_run import new_run

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.data.examples.labeled import encode_text, pad_rows
from llmfast.finetuning.classification import Classification
from llmfast.finetuning.predict import load_classifier, predict
from llmfast.integrations.huggingface import save_huggingface
from llmfast.models.classifier import ClassifierConfig, SequenceClassifier, without_head
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import checkpoints, load_decoder
from llmfast.models.tensors import model_tensors
from llmfast.training.checkpoints.checkpoint import read_checkpoint
from llmfast.training.config import ParallelConfig
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit, save
from llmfast.training.session import new_session, resumed_session
from llmfast.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining run of a few steps, to start from."""
    session = new_run(tmp_path_factory.mktemp("pretrained"), steps=3, evaluate_every=0, sample_every=0)
    fit(session)
    return session.run.folder


def losses(trainer, steps):
    return [(float(step.loss), step.figures["accuracy"]) for step in (trainer.step() for _ in range(steps))]


# --- end to end -----------------------------------------------------------------------------------------------------


def test_the_commands_train_a_classifier_and_use_it(tmp_path, capsys, monkeypatch):
    config = labels_config(write_labels(tmp_path / "texts.tsv", 300), steps=120, evaluate_every=40, sample_every=60)
    config.model = dataclasses.replace(config.model, dropout=0.0)
    config_files.save(config, tmp_path / "config.yaml")
    run = tmp_path / "run"
    assert main(["classify", "--config", str(tmp_path / "config.yaml"), "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "train       234 texts: bad 125, good 109" in said
    assert "accuracy" in said
    assert " → good (" in said or " → bad (" in said
    session = resumed_session(run, task=Classification)
    assert session.trainer.evaluate()["accuracy"] > 0.9
    records = session.run.records()
    assert {r["step"] for r in records if "accuracy" in r} == set(range(1, 121))
    assert [r["step"] for r in records if "validation_accuracy" in r] == [40, 80, 120]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")

    assert main(["predict", str(run), "--text", "my case is awful"]) == 0
    label, probability, text = capsys.readouterr().out.strip().split("\t")
    assert (label, text) == ("bad", "my case is awful")
    assert 0.5 < float(probability) <= 1
    (tmp_path / "new.txt").write_text("\ufeffi love it\r\n\nthe phone was broken\n", encoding="utf-8")
    assert main(["predict", str(run), "--file", str(tmp_path / "new.txt")]) == 0
    by_file = capsys.readouterr().out
    assert [line.split("\t")[0] for line in by_file.splitlines()] == ["good", "bad"]
    monkeypatch.setattr("sys.stdin", io.StringIO("i love it\nthe phone was broken\n"))
    assert main(["predict", str(run)]) == 0
    assert capsys.readouterr().out == by_file
    assert main(["model", "info", str(run)]) == 0


def test_other_commands_say_what_a_classifier_is(tmp_path, pretrained, capsys):
    session = new_labels_run(tmp_path)
    save(session)
    run = str(session.run.folder)
    for command, sentence in {
        ("generate", run): "holds a classifier, not a language model: use llmfast predict",
        ("train", "--resume", run): "is no run that llmfast train can resume",
        ("classify", "--resume", str(pretrained)): "is no run that llmfast classify can resume",
        ("predict", str(pretrained), "--text", "x"): "holds a language model, not a classifier",
        ("predict", run, "--text", "x", "--file", "y"): "give either --text or --file",
        ("classify", "--freeze", "decoder", "--out", str(tmp_path / "x")): "freeze needs start",
        ("classify", "--out", str(tmp_path / "x")): "give data.sources",
    }.items():
        assert main(list(command)) == 2, command
        assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "x").exists()


# --- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, pretrained, frozen):
    options = {"start": str(pretrained), "freeze": ("decoder",)} if frozen else {}
    session = new_labels_run(tmp_path, optimizer="adamw" if frozen else "muon", **options)
    losses(session.trainer, 3)
    save(session)
    rest = losses(session.trainer, 5)
    resumed = resumed_session(session.run.folder, task=Classification).trainer
    assert losses(resumed, 5) == rest
    for (name, a), b in zip(session.trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    session = new_labels_run(tmp_path)
    session.config.model = dataclasses.replace(session.config.model, dropout=0.0)
    whole = classifier_of(session).step()
    parts = classifier_of(session, accumulate=4).step()
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.gradient_norm, whole.gradient_norm, rtol=1e-5, atol=0)
    assert parts.figures == pytest.approx(whole.figures)


def test_compiled_and_plain_agree(tmp_path):
    session = new_labels_run(tmp_path)
    session.config.model = dataclasses.replace(session.config.model, dropout=0.0)
    plain = losses(classifier_of(session), 3)
    assert losses(classifier_of(session, compile=True), 3) == [pytest.approx(each, rel=1e-4) for each in plain]


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(), ParallelConfig("fsdp"), ParallelConfig(tensor=2)],
    ids=["ddp", "fsdp", "tensor"],
)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_two_processes_have_the_losses_of_one_and_one_resumes_theirs(tmp_path, pretrained, parallel, frozen):
    """Traps: an output head that no loss reaches, which DDP waits for; a frozen part divided between processes."""
    options = {"start": str(pretrained), "freeze": ("decoder",)} if frozen else {}
    session = new_labels_run(tmp_path, accumulate=2, **options)
    config = session.config
    if not frozen:
        config.model = dataclasses.replace(config.model, dropout=0.0, tie_embeddings=False, kv_heads=2)
    elif parallel.tensor > 1:
        pytest.skip("the model to start from has one head for keys and values, which cannot be divided")
    alone = train_classifier(World(), config, session.run.data, 6)
    config.parallel = parallel
    both = run_ranks(train_classifier, 2, config, session.run.data, 3, None, tmp_path / "two")
    assert both[0] == both[1]
    assert both[0][:3] == [pytest.approx(each, rel=2e-4, abs=1e-6) for each in alone[:3]]
    (saved,) = checkpoints(tmp_path / "two")
    config.parallel = ParallelConfig()
    rest = train_classifier(World(), config, session.run.data, 3, saved)
    assert rest == [pytest.approx(each, rel=2e-4, abs=1e-6) for each in alone[3:]]


def test_padding_changes_nothing_and_evaluation_is_without_dropout(tmp_path):
    """Trap: the class read from padding."""
    session = new_labels_run(tmp_path)
    trainer = session.trainer
    losses(trainer, 4)
    assert trainer.evaluate() == trainer.evaluate()
    rows = [encode_text(session.task.tokenizer, text, 16) for text in ("a great phone", "it is awful and broken")]
    with trainer.inference() as model:
        together = model(*pad_rows(rows, 0).columns.values()).logits
        for place, row in enumerate(rows):
            for padding in (0, 5):
                padded = torch.tensor([[*row, *[padding] * (16 - len(row))]])
                alone = model(padded, torch.tensor([len(row)])).logits
                torch.testing.assert_close(alone[0], together[place], rtol=1e-5, atol=1e-6)


def test_experts_are_balanced_in_classification_too(tmp_path):
    session = new_labels_run(tmp_path)
    experts = ExpertsConfig(count=4, active=2, bias_rate=0.01)
    session.config.model = dataclasses.replace(session.config.model, experts=experts)
    trainer = classifier_of(session)
    figures = trainer.step().figures
    balancing = {"expert_max_violation", "experts_unused", "load_balancing_loss", "router_z_loss"}
    assert {"accuracy", *balancing} == set(figures)
    assert trainer.model.decoder.blocks[0].feed_forward.router.bias.any()


# --- starting from weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "checkpoint", "huggingface"])
def test_it_starts_from_a_run_a_checkpoint_or_a_hugging_face_folder(tmp_path, pretrained, kind):
    checkpoint = checkpoints(pretrained)[-1]
    start = {"run": pretrained, "checkpoint": checkpoint, "huggingface": tmp_path / "hf"}[kind]
    if kind == "huggingface":
        pytest.importorskip("huggingface_hub")
        save_huggingface(load_decoder(checkpoint), start, tokenizer_from=checkpoint)
    session = new_labels_run(tmp_path, start=str(start))
    assert session.config.model.width == 16
    expected = model_tensors(load_decoder(checkpoint))
    for name, tensor in model_tensors(session.trainer.model.decoder).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_frozen_base_stays_and_is_in_no_checkpoint(tmp_path, pretrained):
    session = new_labels_run(tmp_path, start=str(pretrained), freeze=("decoder",))
    fit(session)
    checkpoint = read_checkpoint(checkpoints(session.run.folder)[-1])
    assert set(checkpoint.model) == {"head.weight", "head.bias"}
    assert checkpoint.model["head.weight"].any()
    expected = model_tensors(load_decoder(checkpoints(pretrained)[-1]))
    for name, tensor in model_tensors(session.trainer.model.decoder).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_base_that_is_missing_or_another_one_is_named(tmp_path, pretrained, capsys):
    base, other = tmp_path / "base", new_run(tmp_path / "other", steps=3, learning_rate=1e-4)
    shutil.copytree(pretrained, base)
    session = new_labels_run(tmp_path, start=str(base), freeze=("decoder",))
    save(session)
    run = session.run.folder
    model, tokenizer = load_classifier(run)
    expected = list(predict(model, tokenizer, ["it is great"]))
    moved = base.rename(tmp_path / "moved")
    for command in (["predict", str(run), "--text", "x"], ["classify", "--resume", str(run)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert str(base) in said
        assert "missing" in said or "does not exist" in said
    assert list(predict(*load_classifier(run, base=moved), ["it is great"])) == expected
    save(other)
    with pytest.raises(ValueError, match=r"was trained on the base .*base.* but here the base is .*other"):
        load_classifier(run, base=other.run.folder)


def test_the_tokenizer_and_the_shape_are_those_of_the_start(tmp_path, pretrained):
    file = write_labels(tmp_path / "texts.tsv")
    config = labels_config(file, start=str(pretrained))
    config.model = DecoderConfig(width=24, heads=3)
    with pytest.raises(ValueError, match=r"model\.width is 24, but the model in .* has 16: with start, leave"):
        new_session(tmp_path / "run", config, task=Classification, report=lambda line: None)
    config = labels_config(file, start=str(pretrained))
    other = labels_config(file)
    new_session(tmp_path / "other", other, task=Classification, report=lambda line: None)
    config.data.tokenizer = str(tmp_path / "other" / "data")
    with pytest.raises(ValueError, match="has another tokenizer than the data"):
        new_session(tmp_path / "run", config, task=Classification, report=lambda line: None)


def test_an_output_head_of_its_own_is_left_behind():
    decoder = Decoder(DecoderConfig(vocab_size=50, width=16, layers=1, heads=2, context=16, tie_embeddings=False))
    bare = without_head(decoder)
    assert torch.equal(bare.embedding.weight, decoder.embedding.weight)
    assert sum(p.numel() for p in bare.parameters()) == bare.config.parameters
    model = SequenceClassifier(bare, ClassifierConfig(bare.config, ("a", "b"), 16))
    model(torch.randint(50, (2, 8)), torch.tensor([8, 3])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_texts_are_refused_on_resume(tmp_path):
    session = new_labels_run(tmp_path / "a")
    checkpoint = read_checkpoint(save(session))
    config = labels_config(write_labels(tmp_path / "b.tsv", 130))
    other = new_session(tmp_path / "b", config, task=Classification, report=lambda line: None)
    task = other.task
    with pytest.raises(ValueError, match="the data of this run are not those"):
        Trainer(task, task.config.training).restore(checkpoint)


def test_every_text_is_seen_once_an_epoch_by_any_number_of_processes(tmp_path):
    from llmfast.data.examples.labeled import LabeledLoader
    from llmfast.data.shards import Share

    split = new_labels_run(tmp_path).task.prepared.train
    one = LabeledLoader(split, seed=3)
    two = [LabeledLoader(split, seed=3, share=Share(rank, 2)) for rank in range(2)]
    rows = []
    for _ in range(len(split) // 8 + 1):
        whole, halves = one.next(8), [each.next(8) for each in two]
        together = list(itertools.chain(*(half.tokens.tolist() for half in halves)))
        lengths = torch.cat([half.lengths for half in halves])
        assert torch.equal(lengths, whole.lengths)
        found = [row[: int(size)] for row, size in zip(whole.tokens.tolist(), lengths, strict=True)]
        assert [row[: int(size)] for row, size in zip(together, lengths, strict=True)] == found
        rows += map(tuple, found)
    assert len(set(rows[: len(split)])) == len(split)


def test_a_classifier_can_start_from_another_one(tmp_path):
    """A large set of labeled texts helps with a small one of other labels: the decoder is kept, the head is new."""
    first = new_labels_run(tmp_path / "first")
    losses(first.trainer, 2)
    save(first)
    rows = [f"the phone was {word} {number}\t{word}" for number in range(60) for word in ("red", "blue", "green")]
    (tmp_path / "colors.tsv").write_text("\n".join(rows))
    config = labels_config(tmp_path / "colors.tsv", start=str(first.run.folder))
    second = new_session(tmp_path / "second", config, task=Classification, report=lambda line: None)
    model = second.trainer.model
    for name, tensor in model_tensors(first.trainer.model.decoder).items():
        assert torch.equal(tensor, model_tensors(model.decoder)[name]), name
    assert model.head.weight.shape == (3, 16)
    assert not model.head.weight.any()
