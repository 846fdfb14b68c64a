"""Runs that train adapters: resumed to the bit, on several processes, used, merged and exported by commands."""

import dataclasses
import json
import shutil

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from small_adapters import AdapterPretraining, adapter_config, adapter_run, pretrained_run, train_adapters

from llmfast.cli import main
from llmfast.finetuning import LoraConfig, load_adapter, merge_adapter, open_model, save_adapter, use_adapter
from llmfast.finetuning.config import FinetuningConfig
from llmfast.finetuning.model import finetuning_memory
from llmfast.models.config import DecoderConfig
from llmfast.models.folder import checkpoints, load_decoder
from llmfast.models.tensors import model_tensors
from llmfast.training.checkpoints.checkpoint import read_checkpoint
from llmfast.training.config import ParallelConfig, TrainingConfig
from llmfast.training.distribution.world import World
from llmfast.training.loop import fit, save
from llmfast.training.optimizers.build import build_optimizers
from llmfast.training.session import resumed_session

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KINDS = {
    "lora": {"adapter": "lora", "lora": LoraConfig(rank=4, dropout=0.2)},
    "dora of parts": {"adapter": "lora", "lora": LoraConfig(target_modules=("q", "v", "out", "down"), dora=True)},
    "pissa": {"adapter": "lora", "lora": LoraConfig(rank=4, init="pissa", rank_stabilized=True)},
    "in full": {"adapter": "lora", "lora": LoraConfig(target_modules=("qkv",), modules_to_save=("head",))},
    "qlora, 8 bits": {"adapter": "qlora", "lora": LoraConfig(rank=4), "optimizer": "adamw8bit"},
    "frozen in part": {"adapter": "none", "freeze": ("embedding", "blocks.0")},
}
TOKENS = torch.arange(12)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pretrained_run(tmp_path_factory.mktemp("base"))


def losses(trainer, steps):
    return [float(trainer.step().loss) for _ in range(steps)]


def close(pairs):
    return [pytest.approx(pair, rel=2e-4) for pair in pairs]


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_resume_of_an_adapter_run_is_bit_equal_and_the_model_opens(tmp_path, base, kind):
    session = adapter_run(tmp_path, base, **kind)
    losses(session.trainer, 3)
    save(session)
    with session.trainer.inference() as model:
        expected = model(TOKENS)
    rest = losses(session.trainer, 4)
    resumed = resumed_session(session.run.folder, task=AdapterPretraining).trainer
    assert losses(resumed, 4) == rest
    for (name, a), b in zip(session.trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    opened, _ = open_model(session.run.folder)
    assert torch.equal(opened(TOKENS), expected)
    held = read_checkpoint(checkpoints(session.run.folder)[-1])
    trained = {name for name, parameter in resumed.model.named_parameters() if parameter.requires_grad}
    assert {key.rpartition("/")[0] for key in held.optimizer} == trained
    assert trained <= set(held.model)


def test_the_trained_share_is_reported(tmp_path, base):
    lines = []
    adapter_run(tmp_path, base, report=lines.append, lora=LoraConfig(rank=1, target_modules=("out",)))
    (line,) = (line for line in lines if line.startswith("training "))
    assert line.split(None, 1)[1].startswith("128 of ")
    assert line.endswith("%)")
    assert any(line.startswith("memory      weights 0.1 MiB, gradients ") for line in lines)


def test_memory_is_estimated_before_anything_is_loaded():
    shape = DecoderConfig(vocab_size=1000, width=256, layers=4, heads=8)
    found = {}
    for adapter in ("none", "lora", "qlora"):
        training = TrainingConfig(optimizer="adamw8bit" if adapter == "qlora" else "adamw")
        config = FinetuningConfig(start="nowhere", adapter=adapter, lora=LoraConfig(rank=4), training=training)
        found[adapter] = finetuning_memory(config, shape)
    full, linear = 4 * shape.parameters, 4 * 4 * (256 * 1024 + 3 * 256 * 704)
    assert found["none"] == {"weights": full, "gradients": full, "optimizer": 2 * full}
    trained = found["lora"]["gradients"]
    assert trained == 4 * 4 * 4 * (256 + 768 + 256 + 256 + 256 + 1408 + 704 + 256)
    assert found["lora"] == {"weights": full + trained, "gradients": trained, "optimizer": 2 * trained}
    assert found["qlora"]["weights"] == pytest.approx(full - linear + linear * 4.13 / 32 + trained, rel=0.02)
    assert found["qlora"]["optimizer"] == pytest.approx(trained / 4 * (2 + 8 / 256), rel=1e-6)
    frozen = FinetuningConfig(start="nowhere", freeze=("decoder",))
    assert finetuning_memory(frozen, shape) == {"weights": full, "gradients": 0.0, "optimizer": 0.0}


def test_an_adapter_of_another_scale_is_refused_on_resume(tmp_path, base):
    """Trap: a setting that is in no tensor, changed in config.yaml, and nobody told."""
    session = adapter_run(tmp_path, base)
    save(session)
    file = session.run.config_file
    file.write_text(file.read_text().replace("alpha: 16.0", "alpha: 32.0"))
    with pytest.raises(ValueError, match=r"trained with another adapter: its lora\.alpha is 16\.0, not 32\.0"):
        resumed_session(session.run.folder, task=AdapterPretraining)


def test_a_base_that_moved_is_found_by_name_and_another_one_refused(tmp_path, base, capsys):
    """Trap: an adapter on another base."""
    other = pretrained_run(tmp_path / "other", embedding_init="normal")
    moved = shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(base.parent / "corpus", tmp_path / "corpus")
    session = adapter_run(tmp_path, moved)
    losses(session.trainer, 2)
    save(session)
    expected = open_model(session.run.folder)[0](TOKENS)
    moved.rename(tmp_path / "again")
    run = str(session.run.folder)
    commands = [["generate", run], ["adapter", "merge", run, str(tmp_path / "x")], ["adapter", "info", run]]
    for command in commands:
        assert main(command) == 2
        assert "is missing: give base" in " ".join(capsys.readouterr().err.split())
        assert main([*command, "--base", str(other)]) == 2
        assert "was trained on the base" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()
    assert torch.equal(open_model(run, base=tmp_path / "again")[0](TOKENS), expected)
    assert main(["generate", run, "--prompt", "Page", "--tokens", "3", "--base", str(tmp_path / "again")]) == 0


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(), ParallelConfig("fsdp"), ParallelConfig(tensor=2)],
    ids=["ddp", "fsdp", "tensor"],
)
@pytest.mark.parametrize("kind", ["plain", "dora of parts", "biases", "pissa"])
def test_lora_under_ddp_fsdp2_and_tensor_parallel_has_the_losses_of_one(tmp_path, base, parallel, kind):
    """Traps: gradients of factors that are not divided, each from a part of a layer; lengths of divided rows."""
    start = base
    lora = {
        "plain": LoraConfig(rank=4),
        "dora of parts": LoraConfig(rank=4, target_modules=("q", "v", "gate", "out", "down"), dora=True),
        "biases": LoraConfig(target_modules=("qkv", "out", "head"), bias="all"),
        "pissa": LoraConfig(rank=4, init="pissa"),
    }[kind]
    if kind == "biases":
        start = pretrained_run(tmp_path / "biased", biases="all", norm="layer")
    session = adapter_run(tmp_path, start, lora=lora, batch_size=8, accumulate=2, clip_norm=0.5)
    config = session.config
    alone = train_adapters(World(), config, session.run.data, 6)
    config.parallel = parallel
    both = run_ranks(train_adapters, 2, config, session.run.data, 3, None, tmp_path / "two")
    assert both[0] == both[1]
    assert both[0] == close(alone[:3])
    (saved,) = checkpoints(tmp_path / "two")
    config.parallel = ParallelConfig()
    assert train_adapters(World(), config, session.run.data, 3, saved) == close(alone[3:])


@pytest.mark.xdist_group("distributed")
def test_lora_under_tensor_parallel_inside_fsdp2_has_the_losses_of_one(tmp_path, base):
    """Trap: parts of tensor parallel that FSDP2 divides further, and factors that only FSDP2 divides."""
    lora = LoraConfig(rank=4, target_modules=("q", "v", "gate", "out", "down"), dora=True)
    session = adapter_run(tmp_path, base, lora=lora, batch_size=8, accumulate=2, clip_norm=0.5)
    config = session.config
    alone = train_adapters(World(), config, session.run.data, 5)
    config.parallel = ParallelConfig("fsdp", tensor=2)
    four = run_ranks(train_adapters, 4, config, session.run.data, 3, None, tmp_path / "four")
    assert four[0] == close(alone[:3])
    (saved,) = checkpoints(tmp_path / "four")
    config.parallel = ParallelConfig()
    assert train_adapters(World(), config, session.run.data, 2, saved) == close(alone[3:])


@pytest.mark.xdist_group("distributed")
def test_a_base_of_4_bits_is_divided_by_fsdp2_and_refused_by_tensor_parallel(tmp_path, base):
    session = adapter_run(tmp_path, base, adapter="qlora", batch_size=8)
    config = session.config
    alone = train_adapters(World(), config, session.run.data, 3)
    config.parallel = ParallelConfig("fsdp")
    if torch.__version__ < "2.12":
        with pytest.raises(AssertionError, match="divides weights in 4 bits from torch"):
            run_ranks(train_adapters, 2, config, session.run.data, 1)
    else:
        both = run_ranks(train_adapters, 2, config, session.run.data, 3)
        assert both[0] == close(alone)
    config.parallel = ParallelConfig(tensor=2)
    with pytest.raises(AssertionError, match="does not divide weights in 4 bits; use ddp or fsdp"):
        run_ranks(train_adapters, 2, config, session.run.data, 1)


def test_a_batch_in_parts_has_the_gradient_of_the_whole_and_compiling_changes_little(tmp_path, base):
    session = adapter_run(tmp_path, base, batch_size=8)
    whole = train_adapters(World(), session.config, session.run.data, 3)
    session.config.training.accumulate = 4
    assert train_adapters(World(), session.config, session.run.data, 3) == close(whole)
    session.config.training.compile = True
    assert train_adapters(World(), session.config, session.run.data, 3) == close(whole)


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora of parts", "pissa", "in full", "qlora, 8 bits"])
def test_the_adapter_of_a_run_is_merged_and_exported(tmp_path, base, capsys, kind):
    session = adapter_run(tmp_path, base, **KINDS[kind])
    losses(session.trainer, 3)
    save(session)
    run = str(session.run.folder)
    expected = open_model(run)[0](TOKENS)
    capsys.readouterr()
    assert main(["adapter", "merge", run, str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert ("storing them in 4 bits again would change them by" in said) == (kind == "qlora, 8 bits")
    torch.testing.assert_close(load_decoder(tmp_path / "merged")(TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert main(["generate", str(tmp_path / "merged"), "--prompt", "Page", "--tokens", "3"]) == 0

    out = tmp_path / "exported"
    assert main(["adapter", "export", run, str(out)]) == 0
    entries = load_file(out / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.model.") or "lm_head" in key for key in entries)
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    torch.testing.assert_close(open_model(out)[0](TOKENS), expected, rtol=1e-5, atol=1e-5)
    assert main(["generate", str(out), "--prompt", "Page", "--tokens", "3"]) == 0
    assert main(["adapter", "info", str(out)]) == 0
    assert "parameters  " in capsys.readouterr().out
    assert main(["adapter", "info", str(base)]) == 2
    assert "holds a model without an adapter" in capsys.readouterr().err


def test_a_run_can_start_from_an_adapter_run(tmp_path, base):
    first = adapter_run(tmp_path / "first", base)
    losses(first.trainer, 3)
    save(first)
    expected = open_model(first.run.folder)[0](TOKENS)
    config = adapter_config(base)
    config.start = str(first.run.folder)
    task = AdapterPretraining.open(config, first.run.data, begins=True, verify=False, report=lambda line: None)
    model = task.objective().model
    torch.testing.assert_close(model.eval()(TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_an_exported_adapter_on_another_base_is_refused_and_never_merged(tmp_path, base):
    """Trap: an adapter merged onto the wrong base."""
    session = adapter_run(tmp_path, base)
    losses(session.trainer, 2)
    save(session)
    model, _ = open_model(session.run.folder)
    save_adapter(model, tmp_path / "adapter")
    other = load_decoder(checkpoints(pretrained_run(tmp_path / "other", embedding_init="normal"))[-1])
    before = {name: tensor.clone() for name, tensor in model_tensors(other).items()}
    with pytest.raises(ValueError, match="was trained on another base: its tensors have the SHA-256"):
        load_adapter(other, tmp_path / "adapter")
    load_adapter(other, tmp_path / "adapter", check_base=False)
    with pytest.raises(ValueError, match="was trained on another base: its updates mean nothing in these weights"):
        merge_adapter(other)
    with use_adapter(other, None):
        for name, tensor in before.items():
            assert torch.equal(model_tensors(other)[name], tensor)


# --- learning rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_layer_has_its_share_of_the_learning_rate(base, optimizer):
    model = load_decoder(checkpoints(base)[-1]).requires_grad_(True)
    training = adapter_config(base, optimizer=optimizer, layer_decay=0.5).training
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for each in build_optimizers(model, training)
        for group in each.param_groups
        for parameter in group["params"]
    }
    assert set(rates) == set(names.values())
    peak = training.matrix_learning_rate if optimizer == "muon" else training.learning_rate
    assert rates["blocks.1.attention.out.weight"] == pytest.approx(peak / 2)
    assert rates["blocks.0.attention.out.weight"] == pytest.approx(peak / 4)
    assert rates["norm.weight"] == training.learning_rate
    assert rates["embedding.weight"] == pytest.approx(training.learning_rate / 8)
    with pytest.raises(ValueError, match=r"training\.layer_decay must be above 0 and at most 1"):
        dataclasses.replace(training, layer_decay=0.0)


def test_what_freeze_names_stays_and_what_it_does_not_find_is_refused(tmp_path, base):
    session = adapter_run(tmp_path, base, adapter="none", freeze=("embedding", r"blocks\.0"))
    fit(session)
    expected = model_tensors(load_decoder(checkpoints(base)[-1]))
    for name, tensor in model_tensors(session.trainer.model).items():
        assert torch.equal(tensor, expected[name]) == name.startswith(("embedding", "blocks.0")), name
    with pytest.raises(ValueError, match=r"freeze has 'blocks\.7', but no module or parameter is called so"):
        adapter_run(tmp_path / "b", base, adapter="none", freeze=("blocks.7",))
