"""Supervised finetuning on the step loop: what is trained, in whatever rows, and what the saved folder does."""

import itertools
import json

import numpy as np
import pytest
import torch
from ranks import run_ranks
from rich.console import Console
from small_sft import (
    instruction,
    new_sft_run,
    sft_config,
    sft_trainer,
    small_tokenizer,
    write_instructions,
    write_model,
)
from small_sft_ranks import losses

from llmfast import config as config_files
from llmfast.cli import main
from llmfast.data.batch import IGNORED
from llmfast.data.chat.opening import open_chat
from llmfast.data.config import InstructionDataConfig
from llmfast.data.examples.instructions import open_instructions, prepare_instructions
from llmfast.finetuning.model import finetuning_memory
from llmfast.finetuning.supervised import SupervisedFinetuning
from llmfast.inference.config import Sampling
from llmfast.inference.engine import Engine
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.folder import checkpoints, load_decoder, load_model
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit, save
from llmfast.training.monitoring.display import size
from llmfast.training.preflight.checks import describe_run
from llmfast.training.session import new_session, resumed_session


def prepared(folder, records, max_tokens=128, **settings):
    """Records written as JSON Lines, prepared and opened."""
    file = folder / "records.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    small_tokenizer().save(folder / "tokenizer")
    options = {"sources": (str(file),), "tokenizer": str(folder / "tokenizer"), "validation_fraction": 0.3} | settings
    prepare_instructions(InstructionDataConfig(**options), folder / "data")
    return open_instructions(folder / "data", max_tokens=max_tokens)


def documents(batch):
    """(tokens, targets) of each document of a batch, without padding."""
    width = batch.tokens.shape[1]
    starts = range(0, batch.rows * width + 1, width) if batch.cu_seqlens is None else batch.cu_seqlens.tolist()
    found = []
    for start, end in itertools.pairwise(starts):
        tokens, targets = batch.tokens.flatten()[start:end], batch.targets.flatten()[start:end]
        counted = (targets != IGNORED).nonzero()
        if len(counted):
            stop = int(counted[-1]) + 1
            found.append((tuple(tokens[:stop].tolist()), tuple(targets[:stop].tolist())))
    return found


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


# --- end to end -----------------------------------------------------------------------------------------------------


def test_the_command_trains_a_model_that_stops_where_it_should(tmp_path, capsys):
    """The command learns to answer, and ``llmfast generate --chat`` and transformers end the answer alike."""
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} Hi", "completion": "HELLO"}) + "\n" for n in range(40)))
    config = sft_config(
        file,
        write_model(tmp_path / "start", width=32),
        data={"template": "chatml", "form": "auto"},
        steps=60,
        batch_size=2,
        evaluate_every=30,
        sample_every=30,
    )
    config_files.save(config, tmp_path / "config.yaml")
    run = tmp_path / "run"
    assert main(["sft", "--config", str(tmp_path / "config.yaml"), "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "recognized by the columns prompt, completion" in said
    assert "answers end with '<|im_end|>'" in said
    assert "on answers" in said
    assert main(["generate", str(run), "--chat", "7 Hi", "--greedy", "--tokens", "50"]) == 0
    assert capsys.readouterr().out == "HELLO\n"
    assert main(["generate", str(run), "--prompt", "Hi", "--greedy", "--tokens", "300"]) == 0
    assert main(["model", "export", str(run), str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    message = [{"role": "user", "content": "7 Hi"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    _, ours = load_model(run)
    assert prompt["input_ids"][0].tolist() == open_chat(ours, "tokenizer").prompt_of(message)
    written = model.generate(**prompt, max_new_tokens=50, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == "HELLO<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"


def test_other_commands_and_wrong_configurations_are_refused_in_a_sentence(tmp_path, capsys):
    start = str(write_model(tmp_path / "start"))
    file = str(write_instructions(tmp_path / "data.jsonl"))
    out = ["--out", str(tmp_path / "x")]
    for command, sentence in {
        ("sft", "--data.sources", file, *out): "instructions need the tokenizer of a model: give start",
        ("sft", "--start", start, *out): "give data.sources",
        ("sft", "--start", start, "--data.sources", file, "--data.max_tokens", "500", *out): "more than the model's",
        ("sft", "--start", start, "--data.sources", file, "--data.template", "chatlm", *out): "'chatlm', which is",
        ("sft", "--start", start, "--data.sources", file, "--data.template", "tokenizer", *out): "no chat template",
        ("sft", "--dry_run", *out): "leave --out and --resume out",
        ("generate", start, "--chat", "Hi"): "--chat needs a chat template",
        ("generate", start, "--prompt", "a", "--chat", "b"): "either a prompt, --prompt_file or --chat",
    }.items():
        assert main(list(command)) == 2, command
        assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "x").exists()


def test_dry_run_shows_the_trained_part_in_color(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    start, file = write_model(tmp_path / "start"), write_instructions(tmp_path / "data.jsonl")
    config = sft_config(file, start, data={"template": "chatml"})
    config_files.save(config, tmp_path / "config.yaml")
    assert main(["sft", "--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    green, plain = "\x1b[1;32m", "\x1b[0m"
    parts = [part.partition(plain)[0] for part in said.split(green)[1:]]
    assert parts[0] == "what is trained"
    assert len(parts) == 3
    assert all(part.endswith("<|im_end|>") and part.removesuffix("<|im_end|>").isupper() for part in parts[1:])
    assert main(["sft", "--config", str(tmp_path / "config.yaml"), "--overfit_one_batch", "--training.steps", "2"]) == 2
    assert "not memorized" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", ["none", "lora", "qlora"])
def test_dry_run_estimates_the_memory_of_what_is_trained(tmp_path, capsys, adapter):
    """Trap: an estimate of full finetuning for adapters on a base in 4 bits."""
    start = write_model(tmp_path / "start", width=384, layers=2)
    file = write_instructions(tmp_path / "data.jsonl")
    config = sft_config(file, start, data={"template": "plain"}, precision="bfloat16", adapter=adapter)
    memory = finetuning_memory(config, load_decoder(start).config)
    console = Console(width=10_000, highlight=False)
    describe_run(config, task=SupervisedFinetuning, console=console)
    (line,) = (each for each in capsys.readouterr().out.splitlines() if each.startswith("memory      about"))
    for part, count in memory.items():
        assert f"{part} {size(count)}" in line
    cast = load_decoder(start).head if adapter == "qlora" else load_decoder(start)
    count = sum(each.numel() for each in cast.parameters() if each.ndim == 2)
    assert f"weights in bfloat16 {size(2 * count)}" in line


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path):
    session = new_sft_run(tmp_path)
    for _ in range(3):
        session.trainer.step()
    save(session)
    rest = [float(session.trainer.step().loss) for _ in range(4)]
    resumed = resumed_session(session.run.folder, task=SupervisedFinetuning).trainer
    assert [float(resumed.step().loss) for _ in range(4)] == rest
    assert torch.equal(weights(resumed), weights(session.trainer))


def test_a_finetuned_run_is_a_start_again_with_its_own_template(tmp_path):
    session = new_sft_run(tmp_path / "a", data={"template": "chatml"})
    fit(session)
    again = sft_config(tmp_path / "a" / "data.jsonl", session.run.folder)
    reports = []
    second = new_session(tmp_path / "b", again, task=SupervisedFinetuning, report=reports.append)
    assert any("template    of the tokenizer" in line for line in reports)
    assert second.config.model.vocab_size == session.config.model.vocab_size
    first = load_model(session.run.folder)[0]
    assert torch.equal(second.trainer.model.embedding.weight, first.embedding.weight)


def test_generation_obeys_the_settings_beside_the_model(tmp_path, capsys):
    """Trap: a folder that says how to sample, and a command that samples otherwise."""
    start = write_model(tmp_path / "start")
    command = ["generate", str(start), "--prompt", "red", "--tokens", "20"]

    def written(*options):
        assert main([*command, *options]) == 0
        return capsys.readouterr().out

    assert written("--seed", "1") != written("--seed", "2")
    greedy = written("--greedy")
    (start / "generation_config.json").write_text('{"do_sample": false, "temperature": 3.0}')
    assert written("--seed", "1") == written("--seed", "2") == greedy
    (start / "generation_config.json").write_text('{"top_k": 1}')
    assert written("--seed", "1") == written("--seed", "2") == greedy
    assert written("--seed", "1", "--top_k", "50") != greedy
    assert written("--temperature", "1.0", "--top_k", "50", "--seed", "3") != greedy
    model, tokenizer = load_model(start)
    ((reply,),) = Engine(model, tokenizer).generate(["red"], Sampling(temperature=0, max_tokens=1))
    (first,) = reply.tokens
    (start / "generation_config.json").write_text(json.dumps({"eos_token_id": first}))
    assert written("--greedy") == "red\n"


def test_a_sample_is_a_held_out_instruction_with_its_answer(tmp_path):
    session = new_sft_run(tmp_path, data={"template": "chatml"})
    prompt, answer = session.task.sample(session.trainer)
    assert prompt.startswith("<|endoftext|><|im_start|>user\nSay in capitals")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert "<|im_end|>" not in answer


# --- traps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_masks_lost_in_packing(tmp_path, packing):
    """Trap: rows whose targets are the prompts as well. Every example is there once, with its own targets."""
    session = new_sft_run(tmp_path, data={"packing": packing, "template": "chatml"})
    split, task = session.task.prepared.train, session.task
    trainer = sft_trainer(session, batch_size=1)
    found = [each for _ in range(trainer.source.rows) for each in documents(trainer.source.next(1))]
    chat = open_chat(small_tokenizer(), "chatml")
    expected = []
    for number in range(60):
        record = instruction(number)
        asked = f"{record['instruction']}\n\n{record['input']}" if record["input"] else record["instruction"]
        answer = [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]
        prompt = chat.prompt_of(answer[:1])
        answered = [*chat.tokenizer.encode(record["output"]), chat.end_token]
        targets = [IGNORED] * (len(prompt) - 1) + answered
        expected.append(((*prompt, *answered[:-1]), tuple(targets)))
    assert len(found) == len(split) > 30
    assert set(found) <= set(expected)
    assert len(set(found)) == len(found)
    assert task.tokenizer.fingerprint == chat.tokenizer.fingerprint


def test_packed_examples_seeing_each_other(tmp_path):
    """Trap: attention, or positions, across the examples of a row. The loss of a row is that of its examples alone."""
    session = new_sft_run(tmp_path)
    trainer = sft_trainer(session, batch_size=4)
    packed = trainer.source.next(4)
    assert len(packed.cu_seqlens) > 3 * 4
    with trainer.inference() as model:
        together = model(packed.tokens, packed.targets, cu_seqlens=packed.cu_seqlens)
        nats = count = 0
        for tokens, targets in documents(packed):
            targets = torch.tensor([targets])
            here = (targets != IGNORED).sum()
            nats += model(torch.tensor([tokens]), targets) * here
            count += here
    torch.testing.assert_close(together, nats / count, rtol=1e-5, atol=0)


@pytest.mark.proof
@pytest.mark.parametrize("learned", [False, True])
def test_a_batch_of_8_equals_8_parts_equals_packed_rows(tmp_path, learned):
    """Trap: a mean of means under accumulation. 50 steps of 8 examples, however they lie in rows: equal weights."""
    # Without biases: the gradient of a key's bias is zero but for roundings, which AdamW scales up to whole steps.
    settings = {"positions": "learned", "norm": "layer", "activation": "gelu_tanh"} if learned else {}
    write_model(tmp_path / "start", **settings)
    records = 11  # of which 8 are in the training split
    options = {"steps": 50, "learning_rate": 5e-4, "batch_size": 8}
    session = new_sft_run(tmp_path, data={"packing": "none", "validation_fraction": 0.3}, records=records, **options)
    assert len(session.task.prepared.train) == 8
    trained = {}
    for name, packing, training in [
        ("8x1", "none", {"batch_size": 8, "accumulate": 1}),
        ("1x8", "none", {"batch_size": 8, "accumulate": 8}),
        ("packed", "best_fit", {"accumulate": 1}),
    ]:
        session.config.data.packing = packing
        rows = 8 if packing == "none" else session.task.prepared.train.packed().count
        trainer = sft_trainer(session, **{"batch_size": rows} | training)
        losses = [float(trainer.step().loss) for _ in range(50)]
        assert losses[-1] < 0.95 * losses[0]
        trained[name] = weights(trainer)
    assert rows < 8
    for name in ("1x8", "packed"):
        assert (trained[name] - trained["8x1"]).abs().max() <= 1e-6, name


@pytest.mark.xdist_group("distributed")
def test_mean_of_means_across_ranks(tmp_path):
    """Trap: processes with different numbers of targets weigh alike. Two processes have the losses of one."""
    session = new_sft_run(tmp_path, data={"packing": "none"}, accumulate=2)
    alone = losses(World(), session.config, session.run.data, 5)
    both = run_ranks(losses, 2, session.config, session.run.data, 5)
    assert both[0] == both[1]
    assert both[0] == pytest.approx(alone, rel=2e-5)


def test_all_labels_ignored_and_an_example_longer_than_the_context(tmp_path):
    """Trap: an example cut before its answer trains nothing, and nobody is told."""
    long = {"instruction": "red " * 200, "output": "RED"}
    records = [*({"instruction": f"{n}", "output": "q7z " * 30} for n in range(20)), long, long | {"input": "x"}]
    data = prepared(tmp_path / "some", records, max_tokens=60, template="chatml")
    sides = (data.train, data.validation)
    assert sum(len(side) for side in sides) == 20
    assert sum(side.lost for side in sides) == 2
    assert sum(side.cut for side in sides) == 22
    for side in sides:
        batch = side.batch(np.arange(len(side)))
        assert ((batch.targets != IGNORED).sum(1) > 0).all()
        assert batch.tokens.shape[1] <= 60
    with pytest.raises(
        ValueError, match=r"none has an answer within the first 8 tokens: data\.max_tokens is too small"
    ):
        open_instructions(tmp_path / "some" / "data", max_tokens=8)


def test_what_is_cut_and_lost_is_said(tmp_path):
    from llmfast.data.examples.instructions import describe_instructions

    records = [{"instruction": f"{n} " + "red " * n, "output": "GREEN"} for n in range(40)]
    lines = []
    describe_instructions(prepared(tmp_path, records, max_tokens=40, template="chatml"), lines.append)
    assert all(
        "are cut at data.max_tokens 40" in line and "left out because nothing to train" in line for line in lines
    )


def test_empty_answers(tmp_path, capsys):
    """Trap: an empty answer teaches a model to say nothing. They are left out, counted, and refused if all are so."""
    start, file = write_model(tmp_path / "start"), tmp_path / "data.jsonl"
    good = [instruction(n) for n in range(40)]
    empty = [instruction(n) | {"output": " \n"} for n in range(40, 43)]
    file.write_text("".join(json.dumps(record) + "\n" for record in [*good, *empty]))
    lines = []
    config = sft_config(file, start)
    session = new_session(tmp_path / "run", config, task=SupervisedFinetuning, report=lines.append)
    assert f"left out    3 with an empty answer (the first: {file}:41)" in lines
    assert len(session.task.prepared.train) + len(session.task.prepared.validation) == 40
    file.write_text("".join(json.dumps(record) + "\n" for record in empty))
    with pytest.raises(ValueError, match=r"no example can be trained on: 3 with an empty answer \(the first: .*:1\)"):
        new_session(tmp_path / "none", sft_config(file, start), task=SupervisedFinetuning, report=lines.append)


def test_pad_equal_to_end_of_text_masks_no_end(tmp_path):
    """Trap: a loss that ignores a token by its id also ignores the one that ends the answer."""
    session = new_sft_run(tmp_path, data={"template": "plain", "packing": "none"}, batch_size=8)
    end = session.task.tokenizer.eot_token
    batch = session.trainer.source.next(8)
    assert (batch.tokens == end).sum() > 8  # one begins each row; the others fill it up
    assert ((batch.targets == end).sum(1) == 1).all()


@pytest.mark.parametrize(("trained", "share"), [("answers", 2), ("last", 1), ("everything", None)])
def test_what_the_loss_counts(tmp_path, trained, share):
    turns = [("user", "Hi"), ("assistant", "RED"), ("user", "And?"), ("assistant", "BLUE")]
    records = [{"messages": [{"role": r, "content": f"{n} {c}"} for r, c in turns]} for n in range(20)]
    data = prepared(tmp_path, records, trained=trained, template="chatml")
    tokens, flags = data.train.tokens(0)
    decoded = data.tokenizer.decode([token for token, flag in zip(tokens, flags, strict=True) if flag])
    number = decoded.split()[0]
    answers = [f"{number} RED<|im_end|>", f"{number} BLUE<|im_end|>"]
    if share is None:
        assert all(flags)
    else:
        assert decoded == "".join(answers[-share:])


# --- growing the vocabulary -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": False}, {"vocab_multiple": 64}])
def test_new_special_tokens_begin_as_the_mean_of_the_old_rows(tmp_path, settings):
    start = write_model(tmp_path / "start", **settings)
    before, tokenizer = load_model(start)
    session = new_sft_run(tmp_path, data={"template": "chatml"})
    model, known = session.trainer.model, tokenizer.n_vocab
    assert session.config.model.vocab_size == known + 2 == session.task.tokenizer.n_vocab
    tables = ["embedding"] if model.config.tie_embeddings else ["embedding", "head"]
    assert (model.head.weight is model.embedding.weight) == model.config.tie_embeddings
    for name in tables:
        old, new = (getattr(each, name).weight for each in (before, model))
        assert torch.equal(new[:known], old[:known])
        torch.testing.assert_close(new[known : known + 2], old[:known].mean(0).expand(2, -1), rtol=1e-5, atol=1e-7)
        assert len(new) == model.config.table_rows
    fit(session)
    reloaded, _ = load_model(session.run.folder)
    assert torch.equal(reloaded.embedding.weight, model.embedding.weight)


def test_a_model_whose_table_has_rows_to_spare_keeps_its_size(tmp_path):
    """Qwen's tables have more rows than its tokenizer has tokens."""
    from llmfast.models.vocabulary import grow_vocabulary

    model = Decoder(DecoderConfig(vocab_size=40, width=16, layers=1, heads=2))
    old = model.embedding.weight.detach().clone()
    grow_vocabulary(model, 30, 33)
    assert model.config.vocab_size == 40
    assert torch.equal(model.embedding.weight[:30], old[:30])
    torch.testing.assert_close(model.embedding.weight[30:33], old[:30].mean(0).expand(3, -1))
    assert torch.equal(model.embedding.weight[33:], old[33:])


@pytest.mark.parametrize("head_too", [False, True])
def test_a_quantized_model_grows(head_too):
    from llmfast.kernels import NF4Linear

    from llmfast.models.quantize import quantize_model
    from llmfast.models.vocabulary import grow_vocabulary

    model = Decoder(DecoderConfig(vocab_size=40, width=64, layers=1, heads=2, tie_embeddings=False))
    quantize_model(model, skip=() if head_too else ("head",), progress=False)
    tokens = torch.randint(40, (1, 8))
    with torch.no_grad():
        before = model(tokens)
        grow_vocabulary(model, 40, 43)
        after = model(tokens)
    assert isinstance(model.head, NF4Linear) == head_too
    assert after.shape[-1] == 43
    torch.testing.assert_close(after[..., :40], before, rtol=0.05 if head_too else 0, atol=0.02 if head_too else 0)


def test_other_data_or_another_tokenizer_is_refused(tmp_path):
    session = new_sft_run(tmp_path)
    config = sft_config(tmp_path / "data.jsonl", tmp_path / "start", data={"tokenizer": "gpt2x"})
    with pytest.raises((ValueError, OSError)):
        new_session(tmp_path / "x", config, task=SupervisedFinetuning, report=lambda line: None)
    assert checkpoints(session.run.folder) == []


def test_shards_for_pretraining_are_not_taken_for_instructions(tmp_path):
    from llmfast.data.examples.instructions import ExampleSplit
    from llmfast.data.shards import ShardWriter

    writer = ShardWriter(tmp_path, vocab_size=10, eot_token=0, fingerprint="x")
    writer.add(np.array([1, 2, 0]), 1, 2)
    writer.finish()
    with pytest.raises(ValueError, match="prepared for pretraining"):
        ExampleSplit(tmp_path, max_tokens=8)


def test_a_damaged_loss_mask_is_found(tmp_path):
    session = new_sft_run(tmp_path)
    mask = next((session.run.data / "train").glob("*.mask"))
    content = bytearray(mask.read_bytes())
    content[5] ^= 1
    mask.write_bytes(content)
    with pytest.raises(ValueError, match=r"00000\.mask is altered"):
        open_instructions(session.run.data, max_tokens=128)


# --- adapters and frozen parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_learns_the_template_and_generates(tmp_path, capsys, adapter, tied):
    """Trap: new special tokens below a frozen table, whose equal rows no adapter can tell apart."""
    write_model(tmp_path / "start", width=64, tie_embeddings=tied)
    lines = []
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} Hi", "completion": "HELLO"}) + "\n" for n in range(40)))
    config = sft_config(file, tmp_path / "start", data={"template": "chatml"}, steps=40, batch_size=2)
    config.adapter = adapter
    session = new_session(tmp_path / "run", config, task=SupervisedFinetuning, report=lines.append)
    assert any(line.startswith("adapter     the template adds 2 special tokens") for line in lines)
    first = session.trainer.evaluate()["loss"]
    fit(session)
    assert session.trainer.evaluate()["loss"] < 0.2 * first
    resumed = resumed_session(session.run.folder, task=SupervisedFinetuning)
    assert resumed.trainer.evaluate() == session.trainer.evaluate()
    capsys.readouterr()
    assert main(["generate", str(session.run.folder), "--chat", "7 Hi", "--greedy", "--tokens", "30"]) == 0
    assert capsys.readouterr().out == "HELLO\n"


def test_an_adapter_without_new_tokens_trains_nothing_else(tmp_path):
    session = new_sft_run(tmp_path, data={"template": "plain"}, adapter="lora")
    trained = [name for name, each in session.trainer.model.named_parameters() if each.requires_grad]
    assert trained
    assert all(".adapters." in name for name in trained)
    fit(session)


def test_frozen_rows_of_new_tokens_are_refused(tmp_path):
    with pytest.raises(ValueError, match="adds special tokens, whose rows in the embedding table"):
        new_sft_run(tmp_path, data={"template": "chatml"}, freeze=("embedding",))
    session = new_sft_run(tmp_path, data={"template": "plain"}, freeze=("embedding",))
    assert not session.trainer.model.embedding.weight.requires_grad


def test_rows_longer_than_the_context_of_the_model_are_refused(tmp_path):
    """Trap: positions past the context are read from outside of a table, or silently extrapolated."""
    with pytest.raises(ValueError, match=r"data\.max_tokens 4096 is more than the model's context 128"):
        new_sft_run(tmp_path, data={"max_tokens": 4096})
