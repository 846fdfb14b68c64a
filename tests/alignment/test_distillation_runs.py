"""Distillation on the step loop: teachers of llmfast and of transformers, and what they are worth."""

import json

import pytest
import torch
from small_sft import small_tokenizer, write_instructions, write_model

from llmfast.alignment.config import DistillationConfig
from llmfast.alignment.distillation import Distillation
from llmfast.alignment.teacher import open_teacher
from llmfast.cli import main
from llmfast.config import from_dict
from llmfast.data.batch import IGNORED
from llmfast.finetuning.config import SupervisedConfig
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.models.folder import load_model
from llmfast.tokenizer import Tokenizer
from llmfast.training.loop import fit, save
from llmfast.training.session import new_session, resumed_session

TRAINING = {"batch_size": 4, "compile": False, "precision": "float32", "learning_rate": 1e-2, "sample_every": 0}
SMALL = {"width": 16, "layers": 1, "heads": 2, "context": 128}


def run(folder, kind="distill", **settings):
    """A run on instructions, ready to fit, in ``folder``/run; ``settings`` are those of its configuration."""
    file = folder / "data.jsonl"
    if not file.exists():
        write_instructions(file)
    task, config = (Distillation, DistillationConfig) if kind == "distill" else (SupervisedFinetuning, SupervisedConfig)
    data = {"sources": [str(file)], "validation_fraction": 0.3, "packing": "none"} | settings.pop("data", {})
    training = TRAINING | {"steps": 6, "evaluate_every": 3} | settings.pop("training", {})
    tree = {"data": data, "training": training, "model": SMALL} | settings
    return new_session(folder / "run", from_dict(config, tree), task=task, report=lambda line: None)


def teacher(folder, steps=5, **training):
    """A finetuned model, larger than the students."""
    write_model(folder / "start", width=32, layers=2)
    settings = {"start": str(folder / "start"), "model": {}, "training": {"steps": steps} | training}
    session = run(folder, "sft", data={"template": "chatml"}, **settings)
    fit(session)
    return session.run.folder


@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_the_loss_is_the_divergence_of_the_answers_mixed_with_the_cross_entropy(tmp_path, divergence, packing):
    settings = {"teacher": str(teacher(tmp_path / "t")), "divergence": divergence, "temperature": 2.0, "hard": 0.25}
    session = run(tmp_path / "s", data={"packing": packing}, **settings)
    trainer = session.trainer
    position = trainer.source.state()
    batch = trainer.source.next(4)
    trainer.source.restore(position)
    loaded = load_model(tmp_path / "t" / "run")[0]
    counted = batch.targets != IGNORED
    with torch.no_grad():
        p, q = (
            (model(batch.tokens, cu_seqlens=batch.cu_seqlens)[counted].double() / 2).softmax(-1)
            for model in (trainer.model, loaded)
        )
        hard = trainer.model(batch.tokens, batch.targets, cu_seqlens=batch.cu_seqlens)
    m = (p + q) / 2
    each = {
        "forward": (q * (q / p).log()).sum(-1),
        "reverse": (p * (p / q).log()).sum(-1),
        "js": ((q * (q / m).log()).sum(-1) + (p * (p / m).log()).sum(-1)) / 2,
    }[divergence]
    result = trainer.step()
    soft = 4 * float(each.mean())
    assert result.figures["divergence"] == pytest.approx(soft, rel=1e-4)
    assert float(result.loss) == pytest.approx(0.75 * soft + 0.25 * float(hard), rel=1e-4)


def test_the_teacher_stays_as_it_is_and_is_in_no_checkpoint(tmp_path):
    folder = teacher(tmp_path / "t")
    session = run(tmp_path / "s", teacher=str(folder))
    objective = session.trainer.objective
    before = [each.clone() for each in objective.teacher.parameters()]
    objective.train()
    assert not objective.teacher.model.training
    for _ in range(3):
        session.trainer.step()
    saved = save(session)
    rest = [float(session.trainer.step().loss) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(objective.teacher.parameters(), before, strict=True))
    assert not any("teacher" in name for name in load_model(saved)[0].state_dict())
    resumed = resumed_session(session.run.folder, task=Distillation).trainer
    assert [float(resumed.step().loss) for _ in range(3)] == rest


def test_a_student_learns_more_from_a_teacher_than_alone(tmp_path):
    """From the same examples in as many steps, judged by the same held-out answers."""
    settings = {"training": {"steps": 80, "learning_rate": 3e-3, "evaluate_every": 0}}
    folder = teacher(tmp_path / "t", steps=300, evaluate_every=0)
    taught = run(tmp_path / "a", teacher=str(folder), **settings)
    alone = run(tmp_path / "b", "sft", data={"tokenizer": str(folder / "data"), "template": "tokenizer"}, **settings)
    for session in (taught, alone):
        for _ in range(80):
            session.trainer.step()
    assert taught.trainer.evaluate()["loss"] < alone.trainer.evaluate()["loss"]


def test_a_teacher_of_transformers_gives_the_losses_of_our_own(tmp_path):
    """Also where its table has more rows than there are tokens, whose logits must not take part."""
    transformers = pytest.importorskip("transformers")
    ours = teacher(tmp_path / "t")
    assert main(["model", "export", str(ours), str(tmp_path / "hf")]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    model.resize_token_embeddings(model.config.vocab_size + 24)
    model.save_pretrained(tmp_path / "hf")
    # llmfast would read this folder itself.
    from llmfast.alignment import teacher as module

    tokenizer = Tokenizer.load(tmp_path / "hf")
    tokens = torch.randint(tokenizer.n_vocab, (2, 9))
    theirs = module._from_transformers(tmp_path / "hf", tokenizer.n_vocab, packed=False)
    own = open_teacher(ours, load_model(ours)[1], packed=False)
    assert theirs.head.shape == own.head.shape
    logits = [each(tokens, None, None) @ each.head.T for each in (theirs, own)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"set data\.packing to none"):
        module._from_transformers(tmp_path / "hf", tokenizer.n_vocab, packed=True)


def test_what_cannot_be_distilled_is_refused(tmp_path, capsys):
    """Trap: a teacher with another vocabulary, whose divergence would compare other tokens."""
    other = Tokenizer.train(["another text, another vocabulary"] * 3, 280, allow_smaller=True)
    from llmfast.models.config import DecoderConfig
    from llmfast.models.decoder import Decoder
    from llmfast.models.folder import save_model

    save_model(
        tmp_path / "other", Decoder(DecoderConfig(vocab_size=other.n_vocab, width=16, layers=1, heads=2)),
        write_tokenizer=other.save,
    )  # fmt: skip
    small_tokenizer().save(tmp_path / "tokenizer")
    write_instructions(tmp_path / "data.jsonl")
    plain = ["--data.sources", str(tmp_path / "data.jsonl"), "--data.tokenizer", str(tmp_path / "tokenizer")]
    for options, sentence in {
        (): "distill needs teacher",
        ("--teacher", str(tmp_path / "nowhere")): "does not exist",
        ("--teacher", str(tmp_path / "other")): "has another tokenizer than the student",
        ("--teacher", "x", "--temperature", "0"): "temperature must be positive",
        ("--teacher", "x", "--hard", "2"): "hard is a share",
    }.items():
        assert main(["distill", *plain, *options, "--out", str(tmp_path / "x")]) == 2
        assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split()), options
    assert not (tmp_path / "x").exists()


def test_the_command_makes_a_model_to_talk_to(tmp_path, capsys):
    folder = teacher(tmp_path / "t")
    write_instructions(tmp_path / "data.jsonl")
    config = {
        "teacher": str(folder), "data": {"sources": [str(tmp_path / "data.jsonl")], "validation_fraction": 0.3},
        "model": SMALL, "training": TRAINING | {"steps": 4},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))  # JSON is YAML
    run_folder = str(tmp_path / "run")
    assert main(["distill", "--config", str(tmp_path / "config.json"), "--out", run_folder]) == 0
    assert main(["generate", run_folder, "--chat", "Say red", "--greedy", "--tokens", "3"]) == 0
    assert "on answers" in capsys.readouterr().out
