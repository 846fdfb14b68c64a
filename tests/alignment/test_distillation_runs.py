"""Distillation on the step loop: teachers of llmfast and of transformers, and what they are worth."""

import json
import shutil

import pytest
import torch
from small_sft import small_tokenizer, write_instructions, write_model

from llmfast.alignment.config import DistillationConfig
from llmfast.alignment.distillation import Distillation
from llmfast.alignment.own_answers import CHOICE, prompt_of
from llmfast.alignment.teacher import open_teacher
from llmfast.alignment.teacher_table import TABLE
from llmfast.cli import main
from llmfast.config import from_dict
from llmfast.data.batch import IGNORED
from llmfast.data.order import random_integer
from llmfast.finetuning.config import SupervisedConfig
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.inference.config import EngineConfig, Sampling
from llmfast.inference.engine import Engine
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


def teacher(folder, steps=5, logit_scale=0.7, **training):
    """A finetuned model, larger than the students."""
    write_model(folder / "start", width=32, layers=2, logit_scale=logit_scale)
    settings = {"start": str(folder / "start"), "model": {}, "training": {"steps": steps} | training}
    session = run(folder, "sft", data={"template": "chatml"}, **settings)
    fit(session)
    return session.run.folder


@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_the_loss_is_the_divergence_of_the_answers_mixed_with_the_cross_entropy(tmp_path, divergence, packing):
    settings = {"teacher": str(teacher(tmp_path / "t")), "divergence": divergence, "temperature": 2.0, "hard": 0.25}
    session = run(tmp_path / "s", data={"packing": packing}, model=SMALL | {"logit_scale": 0.4}, **settings)
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
    ours = teacher(tmp_path / "t", logit_scale=1.0)
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


# --- whose answers ---------------------------------------------------------------------------------------------------


def test_the_teacher_writes_the_answers_to_train_on_and_no_others(tmp_path):
    """Sequence-level distillation: its likeliest tokens, as they were generated; held-out answers stay the data's."""
    folder = teacher(tmp_path / "t", steps=20)
    given = run(tmp_path / "g", teacher=str(folder)).task.prepared
    session = run(tmp_path / "s", teacher=str(folder), answers="teacher", hard=1.0, max_answer=7)
    prepared = session.task.prepared
    model, tokenizer = load_model(folder)
    engine = Engine(model, tokenizer, EngineConfig(max_batch=1), ends=prepared.chat.end_tokens)
    for place in (0, len(prepared.train) - 1):
        tokens, trained = prepared.train.tokens(place)
        prompt, answer = tokens[: trained.index(True)], tokens[trained.index(True) :]
        assert prompt == prompt_of(given.train, place)
        ((reply,),) = engine.generate([prompt], Sampling(temperature=0, max_tokens=7))
        assert answer == reply.tokens
        assert all(trained[len(prompt) :])
    assert [prepared.validation.tokens(n) for n in range(3)] == [given.validation.tokens(n) for n in range(3)]
    result = session.trainer.step()
    assert float(result.loss) == pytest.approx(result.figures["cross_entropy"], rel=1e-6)


def test_all_likeliest_tokens_of_the_teacher_are_its_whole_distribution(tmp_path):
    """As many as the vocabulary has give the divergence from the teacher itself, at a temperature; fewer give less."""
    folder = teacher(tmp_path / "t")
    settings = {"teacher": str(folder), "temperature": 2.0, "hard": 0.25}
    whole = run(tmp_path / "a", **settings)
    size = whole.task.tokenizer.n_vocab
    table, few = (run(tmp_path / str(k), top_k=k, **settings) for k in (size, 4))
    for _ in range(3):
        steps = [session.trainer.step() for session in (whole, table, few)]
        divergences = [step.figures["divergence"] for step in steps]
        assert divergences[1] == pytest.approx(divergences[0], rel=1e-3)
        assert 0 < divergences[2] < divergences[0]


def test_a_teacher_on_disk_is_needed_before_the_first_step_only(tmp_path):
    folder = teacher(tmp_path / "t")
    session = run(tmp_path / "s", teacher=str(folder), top_k=8)
    shutil.rmtree(folder)
    session.trainer.step()
    save(session)
    rest = [float(session.trainer.step().loss) for _ in range(3)]
    resumed = resumed_session(session.run.folder, task=Distillation).trainer
    assert [float(resumed.step().loss) for _ in range(3)] == rest
    (session.run.data / TABLE).unlink()
    with pytest.raises(ValueError, match=r"teacher\.safetensors with the teacher's log-probabilities is missing"):
        resumed_session(session.run.folder, task=Distillation)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_student_learns_from_its_own_answers_and_resumes_to_the_bit(tmp_path, share):
    """On-policy distillation: answers of the student as it is at that step, in the wanted share of the steps."""
    folder = teacher(tmp_path / "t")
    settings = {"teacher": str(folder), "on_policy": share, "max_answer": 6, "divergence": "reverse"}
    session = run(tmp_path / "s", **settings, training={"learning_rate": 3e-3})
    trainer = session.trainer
    for _ in range(4):
        trainer.step()
    save(session)
    rest = [trainer.step() for _ in range(3)]
    resumed = resumed_session(session.run.folder, task=Distillation).trainer
    again = [resumed.step() for _ in range(3)]
    assert [float(each.loss) for each in again] == [float(each.loss) for each in rest]
    assert all(each.figures["divergence"] > 0 for each in rest)
    lengths = [int((trainer.source.next(4).targets != IGNORED).sum(1).max()) for _ in range(6)]
    assert (max(lengths) <= 6) == (share == 1.0)


def test_a_share_of_the_steps_is_on_policy():
    """Trap: a share that is drawn again after a resume, or that all processes draw for themselves."""
    chosen = [random_integer((0, CHOICE, position)) < 0.3 * 2**64 for position in range(0, 4000, 4)]
    assert 0.25 < sum(chosen) / len(chosen) < 0.35


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"on_policy": 1.5}, "on_policy is a share"),
        ({"on_policy": 0.5, "data": {"packing": "best_fit"}}, "on_policy needs one example in each row"),
        ({"on_policy": 0.5, "hard": 0.1}, "hard 0.1 is for answers that are given"),
        ({"on_policy": 0.5, "top_k": 4}, "with on_policy leave it out"),
        ({"answers": "teacher", "data": {"trained": "everything"}}, "there are none"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 4, "divergence": "js"}, "top_k gives the divergence forward alone"),
        ({"top_k": 100_000, "data": {"template": "plain"}}, "top_k 100000 is more than"),
    ],
)
def test_settings_that_exclude_one_another_are_refused(tmp_path, settings, sentence):
    write_model(tmp_path / "t")
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "s", teacher=str(tmp_path / "t"), **settings)
    assert not (tmp_path / "s" / "run").exists()


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
