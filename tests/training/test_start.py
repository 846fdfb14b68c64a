"""Training that starts from weights: from a run, with its tokenizer and its shape, and resumed without it."""

import dataclasses
import shutil

import pytest
import torch
from small_run import new_run, small_config, write_corpus

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.models.config import DecoderConfig
from llmfast.models.folder import checkpoints, load_decoder
from llmfast.training.loop import fit, save
from llmfast.training.session import new_session, resumed_session


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    session = new_run(tmp_path_factory.mktemp("trained"), steps=4, evaluate_every=0, sample_every=0)
    fit(session)
    return session.run.folder


def started(folder, start, model=None, **training):
    """A run on other text that starts from ``start``."""
    config = small_config(write_corpus(folder / "corpus", 70), **training)
    config = dataclasses.replace(config, start=str(start), model=model or DecoderConfig())
    return new_session(folder / "run", config, report=lambda line: None)


def test_it_has_the_weights_the_tokenizer_and_the_shape_of_the_start(tmp_path, trained):
    session = started(tmp_path, trained, DecoderConfig(dropout=0.25))
    checkpoint = checkpoints(trained)[-1]
    expected = load_decoder(checkpoint).state_dict()
    for name, tensor in session.trainer.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert session.config.model.width == 16
    assert session.config.model.dropout == 0.25
    assert session.trainer.model.training
    assert (session.run.data / "tokenizer.json").read_text() == (checkpoint / "tokenizer.json").read_text()
    assert session.trainer.step().fault is None


def test_a_run_resumes_to_the_bit_when_its_start_is_gone(tmp_path, trained):
    """Trap: weights read from the start again, or a run that needs a folder for nothing."""
    start = shutil.copytree(trained, tmp_path / "start")
    session = started(tmp_path, start, steps=8)
    for _ in range(3):
        session.trainer.step()
    save(session)
    rest = [float(session.trainer.step().loss) for _ in range(4)]
    shutil.rmtree(start)
    resumed = resumed_session(session.run.folder).trainer
    assert [float(resumed.step().loss) for _ in range(4)] == rest


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (DecoderConfig(layers=2), r"model\.layers is 2, but the model in .* has 1: with start, leave"),
        (DecoderConfig(kv_heads=2), r"model\.kv_heads is 2, but the model in .* has 1"),
        (DecoderConfig(activation="gelu"), r"model\.activation is 'gelu', but the model in .* has 'swiglu'"),
    ],
)
def test_settings_that_the_weights_contradict_are_refused(tmp_path, trained, model, message):
    with pytest.raises(ValueError, match=message):
        started(tmp_path, trained, model)
    assert not (tmp_path / "run").exists()


def test_what_is_no_start_is_named(tmp_path, trained, capsys):
    config = small_config(write_corpus(tmp_path / "corpus"))
    config.model = DecoderConfig()
    config_files.save(config, tmp_path / "config.yaml")
    (tmp_path / "empty").mkdir()
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"), "--start"]
    for start, sentence in {
        "nowhere": "start: nowhere does not exist",
        str(tmp_path / "empty"): "neither a checkpoint nor a run folder",
    }.items():
        assert main([*command, start]) == 2
        assert sentence in capsys.readouterr().err
    texts = small_config(tmp_path / "corpus")
    texts.data.vocab_size = 290
    other = new_session(tmp_path / "other", texts, report=lambda line: None)
    assert main([*command, str(trained), "--data.prepared", str(other.run.data)]) == 2
    assert "has another tokenizer than the data were prepared with" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
