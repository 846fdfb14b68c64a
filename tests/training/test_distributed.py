"""Several processes: the losses of one, checkpoints that any number goes on from, and no process left waiting."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import torch
from ranks import run_ranks
from small_run import small_config, write_corpus

from llmfast import config as config_files
from llmfast.data.prepare import prepare
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.folder import checkpoints, load_model
from llmfast.training.checkpoints.checkpoint import read_checkpoint
from llmfast.training.config import ParallelConfig, RunConfig
from llmfast.training.distribution.world import World
from llmfast.training.run_folder import RunFolder
from llmfast.training.session import new_session

pytestmark = [
    pytest.mark.xdist_group("distributed"),  # one worker: the processes started here use the other cores
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STRATEGIES = {
    "ddp": ParallelConfig(),
    "fsdp": ParallelConfig("fsdp"),
    "hsdp": ParallelConfig("hsdp", group=1),
    "fsdp, offloaded": ParallelConfig("fsdp", cpu_offload=True),
    "tensor": ParallelConfig(tensor=2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    config = small_config(write_corpus(folder / "corpus"))
    prepare(config.data, folder / "data")
    return folder / "data"


def run_config(data, parallel=ParallelConfig(), **training):  # noqa: B008
    config = small_config(data, **({"batch_size": 8, "accumulate": 2, "clip_norm": 0.5, "steps": 12} | training))
    config.data = dataclasses.replace(config.data, sources=(), prepared=str(data))
    config.model = dataclasses.replace(
        config.model, layers=2, kv_heads=2, qk_norm=True, biases="all", attention_sinks=True
    )
    config.parallel = parallel
    return config


@pytest.fixture(scope="module")
def check_steps(data, tmp_path_factory):
    """Checks (loss, gradient norm) of steps of a run, of which there are twelve, against those of float64.

    Processes add the numbers of one process in another order. So does one process that works through a batch in more
    or fewer parts: twice the largest relative error of such runs is allowed.
    """
    folder = tmp_path_factory.mktemp("alone")
    exact = jobs.train(World(), folder / "exact", run_config(data), 12, exactly=True)

    def error(pairs, start=0):
        figures = zip(itertools.chain(*pairs), itertools.chain(*exact[start : start + len(pairs)]), strict=True)
        return max(abs(found / right - 1) for found, right in figures)

    roundings = {
        parts: error(jobs.train(World(), folder / f"{parts}", run_config(data, accumulate=parts), 12))
        for parts in (1, 2, 4, 8)
    }

    def check(pairs, start=0):
        assert error(pairs, start) <= 2 * max(roundings.values()), roundings

    return check


@pytest.mark.parametrize("parallel", STRATEGIES.values(), ids=STRATEGIES)
def test_two_processes_have_the_losses_of_one_and_any_number_goes_on(data, check_steps, tmp_path, parallel):
    """Traps: gradients averaged where they should be summed; a checkpoint that only as many ranks can read."""
    config = run_config(data, parallel)
    both = run_ranks(jobs.train, 2, tmp_path, config, 6)
    assert both[0] == both[1]
    check_steps(both[0])
    (saved,) = checkpoints(tmp_path / "run")

    one = jobs.train(World(), tmp_path / "one", run_config(data), 6, saved)
    check_steps(one, 6)

    (from_one,) = checkpoints(tmp_path / "one" / "run")
    assert set(read_checkpoint(from_one).optimizer) == set(read_checkpoint(saved).optimizer)
    model, _ = load_model(saved)  # and it is a checkpoint as any other
    assert model.config.layers == 2


def test_runs_go_on_with_other_numbers_and_strategies(data, check_steps, tmp_path):
    config = run_config(data, ParallelConfig("fsdp"))
    run_ranks(jobs.train, 2, tmp_path / "two", config, 3)
    (saved,) = checkpoints(tmp_path / "two" / "run")
    layouts = [
        ParallelConfig("hsdp", group=2),
        ParallelConfig(tensor=2),  # two copies of a model that two processes divide
        ParallelConfig("fsdp", tensor=2),  # one copy, whose parts of two processes are divided further
    ]
    for start, parallel in zip((3, 6, 9), layouts, strict=True):
        four = run_ranks(jobs.train, 4, tmp_path / f"{start}", run_config(data, parallel), 3, saved)
        check_steps(four[0], start)
        (saved,) = checkpoints(tmp_path / f"{start}" / "run")
    model, _ = load_model(saved)
    assert model.config.layers == 2


def test_a_divided_model_saves_in_the_background(data, check_steps, tmp_path):
    config = run_config(data, ParallelConfig("fsdp"), async_checkpoints=True)
    steps, _ = run_ranks(jobs.train_on_while_saving, 2, tmp_path, config)
    check_steps(steps)
    (saved,) = checkpoints(tmp_path / "run")
    assert saved.name == "step-000002"
    assert not list(tmp_path.rglob("*.partial"))
    check_steps(jobs.train(World(), tmp_path / "one", run_config(data), 3, saved), 2)


@pytest.mark.parametrize(
    ("size", "parallel"),
    [*((2, each) for each in STRATEGIES.values()), (4, ParallelConfig("fsdp", tensor=2))],
    ids=[*STRATEGIES, "tensor in fsdp"],
)
def test_evaluation_is_divided_and_has_the_result_of_one(data, tmp_path, size, parallel):
    """Traps: every process evaluates all of it; a divided model waits for the one that has no batch left."""
    alone, batches = jobs.evaluate(World(), tmp_path, run_config(data))
    assert batches % 2 == 1
    every = run_ranks(jobs.evaluate, size, tmp_path, run_config(data, parallel))
    shares = size // parallel.tensor
    exactly = parallel.tensor == 1  # the sums inside a layer are those of its parts, otherwise
    for found, calls in every:
        assert calls == -(-batches // shares)
        assert (found if exactly else found["loss"]) == (alone if exactly else pytest.approx(alone["loss"], rel=1e-5))


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig("fsdp")], ids=["ddp", "fsdp"])
def test_an_overflow_in_one_rank_is_skipped_by_all(data, tmp_path, parallel):
    """Trap: each rank decides for itself, and the copies of the weights drift apart."""
    results = run_ranks(jobs.overflow, 2, tmp_path, run_config(data, parallel, precision="float16"))
    assert results == [(2.0**15, True, None)] * 2


def test_each_process_writes_a_trace_with_the_parts_of_its_steps(data, tmp_path):
    """Trap: one file for all processes, of which the last to write is left."""
    config = run_config(data, steps=6, evaluate_every=0, sample_every=0)
    for ranges in run_ranks(jobs.profiled_ranges, 2, tmp_path, config):  # of three steps, two parts each
        assert {name: ranges[name] for name in ("data", "forward", "backward", "step")} == {
            "data": 3, "forward": 6, "backward": 6, "step": 3,
        }  # fmt: skip


def test_ranks_that_disagree_are_told_which(data):
    with pytest.raises(AssertionError, match="ranks disagree: tokenizer is 'y' on rank 1, but 'x' on rank 0"):
        run_ranks(jobs.disagree, 2)


def test_a_failure_of_the_first_rank_ends_all():
    with pytest.raises(AssertionError, match="the disk is on fire"):
        run_ranks(jobs.fail_first, 2)


@pytest.mark.parametrize(
    ("parallel", "sentence"),
    [
        (ParallelConfig(tensor=4), "parallel.tensor 4 does not divide the 6 processes"),
        (ParallelConfig("fsdp", tensor=4), "parallel.tensor 4 does not divide the 6 processes"),
        (ParallelConfig("hsdp", group=4), "parallel.group 4 does not divide the 6 processes"),
        (ParallelConfig("hsdp", group=3, tensor=2), "parallel.tensor 2 does not divide parallel.group 3"),
        (ParallelConfig(experts=4), "parallel.experts 4 does not divide the 6 processes"),
        (ParallelConfig("hsdp", group=3, experts=2), "parallel.experts 2 does not divide parallel.group 3"),
    ],
)
def test_a_division_that_the_processes_cannot_have_is_refused_before_data_is_prepared(tmp_path, parallel, sentence):
    config = small_config(tmp_path / "no corpus")
    config.parallel = parallel
    with pytest.raises(ValueError, match=sentence):
        new_session(tmp_path / "run", config, report=print, world=World(size=6))


def test_a_batch_that_the_processes_cannot_share_is_refused(data):
    with pytest.raises(AssertionError, match=r"batch_size 8 must be divisible by training.accumulate 8 times 2"):
        run_ranks(jobs.train, 2, data, run_config(data, accumulate=8), 1)


@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig("fsdp"), ParallelConfig(tensor=2), ParallelConfig("fsdp", tensor=2)],
    ids=["fsdp", "tensor", "tensor in fsdp"],
)
@pytest.mark.parametrize("optimizer", ["muon", "adamw8bit"])
def test_optimizers_of_whole_matrices_and_blocks_divide_them(data, tmp_path, optimizer, parallel):
    """Traps: a part orthogonalised by itself is not a part of the orthogonal matrix; 256 moments that share a maximum
    may lie in the parts of two processes, and codes saved by two do not hold for four."""
    plain = run_config(data, optimizer=optimizer, learning_rate=1e-3)
    alone = jobs.train(World(), tmp_path / "alone", plain, 9)

    def follows(found, start):
        # A last bit of a gradient can be one of bfloat16 in Muon's iteration, or the next of 256 codes.
        losses, norms = zip(*alone[start : start + 3], strict=True)
        assert [loss for loss, _ in found] == pytest.approx(losses, rel=1e-4)
        assert [norm for _, norm in found] == pytest.approx(norms, rel=2**-8)  # bfloat16's epsilon

    config = dataclasses.replace(plain, parallel=parallel)
    both = run_ranks(jobs.train, 2, tmp_path / "two", config, 3)
    assert both[0] == both[1]
    follows(both[0], 0)
    (saved,) = checkpoints(tmp_path / "two" / "run")
    follows(jobs.train(World(), tmp_path / "one", plain, 3, saved), 3)
    follows(run_ranks(jobs.train, 4, tmp_path / "four", config, 3, saved)[0], 3)
    (saved,) = checkpoints(tmp_path / "one" / "run")  # codes of one process, divided
    follows(run_ranks(jobs.train, 2, tmp_path / "again", config, 3, saved)[0], 6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_muon_on_parts_is_muon(size):
    """In float64, where nothing hides: parts of unequal size or without rows, more matrices than processes."""
    (alone,) = {tuple(jobs.muon_updates(World()))}
    for found in run_ranks(jobs.muon_updates, size):
        assert found == pytest.approx(alone, rel=1e-12)


def test_clipping_is_by_the_norm_of_all_parameters_however_each_is_divided():
    """Trap: the norm of this process's parts alone, or of the parameters of one mesh."""
    alone = jobs.clipped_updates(World())
    assert run_ranks(jobs.clipped_updates, 2) == [pytest.approx(alone, rel=1e-6)] * 2
    run_ranks(jobs.refused_norm, 2)


def test_8_bit_moments_of_parts_are_saved_and_loaded_to_the_bit():
    """Trap: codes of blocks of a part, read as those of blocks of the whole."""
    for whole, resumed in run_ranks(jobs.resumed_8_bit, 3):
        assert whole == resumed


def torchrun(*arguments, processes=2):
    """``llmfast`` with these arguments in so many processes."""
    start = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        processes,
        "-m",
        "llmfast.cli",
    ]
    return subprocess.run(
        [sys.executable, *map(str, [*start, *arguments])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(jobs.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_command_line_under_torchrun(data, check_steps, tmp_path):
    config = run_config(data, steps=12, checkpoint_every=6, evaluate_every=6, sample_every=6)
    config_files.save(config, tmp_path / "config.yaml")
    answer = torchrun("train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("saved in") == 1  # one process speaks
    found = [(r["loss"], r["gradient_norm"]) for r in RunFolder(tmp_path / "run").records() if "loss" in r]
    check_steps(found)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000006", "step-000012"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "training.batch_size 8 must be divisible by training.accumulate 8 times 2 processes"),
        ({"--training.steps": 0}, "training.steps must be at least 1, got 0"),
        (
            {"--training.accumulate": 2, "--training.evaluations": "jobs:fail_last"},
            "rank 1 has no more paper",
        ),
    ],
    ids=["of all, in the run", "of all, in reading it", "of one alone"],
)
def test_a_person_reads_once_why_it_failed(data, tmp_path, settings, sentence):
    """Traps: the same sentence from every process; tracebacks of those that lost their connection to the failed one."""
    config_files.save(run_config(data, evaluate_every=1), tmp_path / "config.yaml")
    options = {"--config": tmp_path / "config.yaml", "--out": tmp_path / "run", "--training.accumulate": 8}
    answer = torchrun("train", *itertools.chain(*(options | settings).items()))
    assert answer.returncode == 1  # torchrun's; those of our processes are in its report
    assert "exitcode  : 2" in answer.stderr
    assert " ".join((answer.stdout + answer.stderr).replace("│", " ").split()).count(sentence) == 1
    said, _, report_of_torchrun = answer.stderr.partition("torch/distributed/elastic")
    assert "Traceback" not in said
    assert report_of_torchrun.count("Traceback") == 1


def experts_config(data, parallel=ParallelConfig(), **training):  # noqa: B008
    config = run_config(data, parallel, **training)
    experts = ExpertsConfig(count=4, active=2, auxiliary_weight=0.1, z_loss_weight=0.01, bias_rate=0.01, biases=True)
    config.model = dataclasses.replace(config.model, experts=experts)
    return config


EXPERT_LAYOUTS = {
    "ddp": (2, ParallelConfig()),
    "experts": (2, ParallelConfig(experts=2)),
    "experts in fsdp": (4, ParallelConfig("fsdp", experts=2)),
}


@pytest.mark.parametrize(("size", "parallel"), EXPERT_LAYOUTS.values(), ids=EXPERT_LAYOUTS)
def test_experts_of_several_processes_are_balanced_as_those_of_one(data, tmp_path, size, parallel):
    """Trap: each process balances its own part, and the figures of the first one alone are logged."""
    alone = jobs.figures(World(), tmp_path / "alone", experts_config(data), 8)
    every = run_ranks(jobs.figures, size, tmp_path / "every", experts_config(data, parallel), 8)
    assert all(found == every[0] for found in every)
    for ours, theirs in zip(every[0], alone, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)


@pytest.mark.parametrize(
    ("optimizer", "parallel"),
    [
        ("adamw", ParallelConfig("hsdp", group=2, experts=2)),
        ("adamw8bit", ParallelConfig("fsdp", experts=2)),  # codes of whole experts, divided twice
    ],
    ids=["adamw, hsdp", "adamw8bit, fsdp"],
)
def test_divided_experts_are_saved_whole_and_resume_with_any_number(data, tmp_path, optimizer, parallel):
    """Traps: gradients of experts that are clipped by a norm in which they count twice, or by a part of it; experts
    averaged over processes that have different ones."""

    def config(parallel=ParallelConfig()):  # noqa: B008
        return experts_config(data, parallel, optimizer=optimizer, learning_rate=1e-3)

    alone = jobs.train(World(), tmp_path / "alone", config(), 9)
    start = None
    for done, size, each in ((0, 4, ParallelConfig(experts=2)), (3, 1, ParallelConfig()), (6, 4, parallel)):
        folder = tmp_path / f"{done}"
        found = run_ranks(jobs.train, size, folder, config(each), 3, start)
        assert all(each == found[0] for each in found)
        losses, norms = zip(*alone[done : done + 3], strict=True)
        assert [loss for loss, _ in found[0]] == pytest.approx(losses, rel=1e-4)
        # A last bit of a gradient can be the next of 256 codes.
        assert [norm for _, norm in found[0]] == pytest.approx(norms, rel=1e-4 if optimizer == "adamw" else 2**-8)
        (start,) = checkpoints(folder / "run")
    whole, _ = load_model(start)
    assert whole.blocks[0].feed_forward.experts.gate_up.shape[0] == 4


def test_divided_experts_compute_what_whole_ones_do(tmp_path):
    """In float64, where nothing hides: all tokens of an uneven batch sent to one expert, and processes without any."""
    for parts in run_ranks(jobs.divided_experts, 3):
        for divided, whole in parts:
            assert divided == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "parallel", [ParallelConfig("fsdp"), ParallelConfig("fsdp", experts=2)], ids=["fsdp", "experts"]
)
def test_routers_choose_in_float32_when_parameters_are_gathered_in_bfloat16(data, tmp_path, parallel):
    """Trap: which of two close experts gets a token depends on rounding, and on whether FSDP2 divides the model."""
    for found in run_ranks(jobs.router_dtypes, 2, tmp_path, experts_config(data, parallel, precision="bfloat16")):
        assert found == {torch.float32}


def test_evaluation_of_divided_experts_has_the_result_of_one(data, tmp_path):
    alone, batches = jobs.evaluate(World(), tmp_path, experts_config(data))
    for found, calls in run_ranks(jobs.evaluate, 2, tmp_path, experts_config(data, ParallelConfig(experts=2))):
        assert calls == (batches + 1) // 2
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("count", "parallel", "sentence"),
    [
        (3, {"experts": 2}, "parallel.experts 2 does not divide model.experts.count 3"),
        (0, {"experts": 2}, "parallel.experts 2 does not divide model.experts.count 0"),
        (4, {"experts": 0}, "parallel.experts must be at least 1, got 0"),
        (4, {"experts": 2, "tensor": 2}, "parallel.tensor does not divide a mixture of experts"),
    ],
)
def test_experts_that_cannot_be_divided_are_refused(count, parallel, sentence):
    with pytest.raises(ValueError, match=sentence):
        RunConfig(model=DecoderConfig(experts=ExpertsConfig(count=count)), parallel=ParallelConfig(**parallel))


def test_a_dry_run_counts_what_each_process_holds(data, tmp_path):
    """Trap: every process describes a run of its own, with the memory of the whole model."""

    def config(parallel):
        config = experts_config(data, parallel)
        config.model = dataclasses.replace(config.model, width=256, head_width=None, ff_width=768, context=64)
        return config

    def sizes(text):
        (line,) = re.findall(r"^memory +about .*", text, re.MULTILINE)
        return {name: float(size) for name, size in re.findall(r"([a-z]+) ([\d.]+) MiB", line)}

    whole = sizes(jobs.dry_run(World(), config(ParallelConfig())))
    described, silent = run_ranks(jobs.dry_run, 2, config(ParallelConfig("fsdp", experts=2)))
    assert silent == ""
    assert "on each of 2 GPUs" in described
    half = sizes(described)
    for name in ("weights", "gradients", "optimizer", "activations"):
        assert whole[name] >= 5
        assert half[name] == pytest.approx(whole[name] / 2, abs=1), name


def test_a_process_that_stands_still_is_named(data, tmp_path):
    """Trap: after ten minutes, a message of the network library that says neither who is missing nor since when."""
    config_files.save(run_config(data, evaluate_every=3), tmp_path / "config.yaml")
    options = {"--config": tmp_path / "config.yaml", "--out": tmp_path / "run", "--parallel.timeout": 0.05}
    answer = torchrun("train", *itertools.chain(*options.items()), "--training.evaluations", "jobs:stand_still")
    assert answer.returncode == 1
    said = " ".join((answer.stdout + answer.stderr).split())
    assert "the processes are no longer together: rank 1 has not completed step 3" in said
