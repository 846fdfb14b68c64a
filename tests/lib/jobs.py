"""What tests run in several processes (see ranks.py)."""

import dataclasses
import io
import json
import time
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from small_run import trainer_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from llmfast.data.prepare import open_prepared
from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.experts import Experts, Router
from llmfast.training.checkpoints.saver import Saver, restore
from llmfast.training.distribution.expert_parallel import DividedExperts
from llmfast.training.distribution.sharding import norm
from llmfast.training.loop import fit, save
from llmfast.training.optimizers.adamw import AdamW
from llmfast.training.optimizers.adamw_8bit import AdamW8bit
from llmfast.training.optimizers.muon import Muon
from llmfast.training.preflight.checks import describe_run
from llmfast.training.run_folder import RunFolder
from llmfast.training.session import Session


def session(world, folder, config):
    """A session on data prepared before, in ``folder``/run."""
    prepared = open_prepared(config.data.prepared)
    config.model = dataclasses.replace(config.model, vocab_size=prepared.tokenizer.n_vocab)
    trainer = trainer_of(config, prepared, world)
    return Session(RunFolder(folder / "run"), trainer.task, trainer)


def train(world, folder, config, steps, start=None, *, exactly=False):
    """The (loss, gradient norm) of ``steps`` steps, from a checkpoint if ``start`` names one; saved at the end.

    ``exactly`` computes them in float64."""
    this = session(world, folder, config)
    if exactly:
        this.trainer.model.double()
    if start is not None:
        restore(this.trainer, start)
    results = [this.trainer.step() for _ in range(steps)]
    save(this)
    return [(float(result.loss), float(result.gradient_norm)) for result in results]


def figures(world, folder, config, steps):
    """The loss and the figures of ``steps`` steps."""
    trainer = session(world, folder, config).trainer
    results = [trainer.step() for _ in range(steps)]
    return [{"loss": float(result.loss), **result.figures} for result in results]


def profiled_ranges(world, folder, config):
    """How often each range of ours is in the trace that this process writes of some steps."""
    this = session(world, folder, config)
    this.run.folder.mkdir(exist_ok=True)
    world.barrier()
    fit(this, console=Console(quiet=True), profile=True)
    trace = json.loads((this.run.folder / f"profile-{world.rank}.json").read_text())
    return Counter(event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation")


def router_dtypes(world, folder, config):
    """The dtypes of the routers' weights and of their outputs while they choose, in one step."""
    trainer = session(world, folder, config).trainer
    found = set()

    def look(router, inputs, outputs):
        found.update((router.weight.dtype, outputs[1].dtype))

    for module in trainer.model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(look)
    trainer.step()
    return found


def evaluate(world, folder, config):
    """The result of evaluating, and how many batches this process went through."""
    this = session(world, folder, config)
    calls = []
    this.trainer.model.register_forward_hook(lambda *_: calls.append(1))
    return this.task.evaluate(this.trainer, stride=2), len(calls)


def train_on_while_saving(world, folder, config):
    """The (loss, gradient norm) of 5 steps, after 2 of which a checkpoint is saved in the background."""
    this = session(world, folder, config)
    saver = Saver(this.run.folder, this.trainer)
    results = []
    for step in range(5):
        results.append(this.trainer.step())
        saver.poll()
        if step == 1:
            saver.save()
    saver.wait()
    return [(float(result.loss), float(result.gradient_norm)) for result in results]


def overflow(world, folder, config):
    """The loss scale after a step whose gradient overflows in the last rank alone, and whether weights changed."""
    this = session(world, folder, config).trainer
    this.step()
    before = [parameter.detach().clone() for parameter in this.model.parameters()]
    forward = this.forward

    def overflowing(batch):
        loss = forward(batch)
        if world.rank == world.size - 1:
            loss.mean.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    this.forward = overflowing
    result = this.step()
    same = all(bool((a == b).all()) for a, b in zip(before, this.model.parameters(), strict=True))
    return this.scaler.scale, same, result.fault


def disagree(world):
    world.check_agreement(data="abc", tokenizer="x" if world.rank == 0 else "y")


def fail_first(world):
    def fail():
        raise ValueError("the disk is on fire")

    world.on_main(fail)


def fail_last(model, tokenizer):
    """An evaluation that fails in the last process alone; the others go on."""
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError(f"rank {dist.get_rank()} has no more paper")
    return {}


def divided(tensors):
    """Parameters with the values of ``tensors``, divided by rows between all processes, if there are several; between
    two and two of four, as HSDP does."""
    if not dist.is_initialized():
        return [torch.nn.Parameter(tensor) for tensor in tensors]
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, 2) if size == 4 else (1, size))
    return [torch.nn.Parameter(distribute_tensor(tensor, mesh, [Replicate(), Shard(0)])) for tensor in tensors]


def set_gradients(parameters, step):
    for number, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(100 * step + number)
        whole = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = divided([whole])[0].detach()


def whole_numbers(parameters):
    wholes = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    return torch.cat([whole.detach().flatten() for whole in wholes]).tolist()


def on_different_meshes(tensors):
    """One parameter divided by rows, one by columns on a mesh of two dimensions as HSDP has, one that is copied, and
    the rest plain; all plain in one process."""
    if not dist.is_initialized():
        return list(tensors)
    size = dist.get_world_size()
    flat, grouped = init_device_mesh("cpu", (size,)), init_device_mesh("cpu", (1, size))
    first, second, third, *rest = tensors
    return [
        distribute_tensor(first, flat, [Shard(0)]),
        distribute_tensor(second, grouped, [Replicate(), Shard(1)]),
        distribute_tensor(third, flat, [Replicate()]),
        *rest,
    ]


def clipped_updates(world):
    """All numbers of some matrices after two updates by gradients that are clipped."""
    shapes = [(5, 4), (3, 6), (4, 4), (2, 7)]
    parameters = [torch.nn.Parameter(each) for each in on_different_meshes([torch.ones(shape) for shape in shapes])]
    optimizer = AdamW(parameters, lr=0.1, eps=1.0, clip_norm=0.5)  # the update follows the size of gradients
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        gradients = on_different_meshes([torch.randn(shape, generator=generator) for shape in shapes])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return whole_numbers(parameters)


def refused_norm(world):
    """Why the norm of a sum whose terms are in different processes is refused."""
    mesh = init_device_mesh("cpu", (world.size,))
    with pytest.raises(ValueError, match="not summed yet"):
        norm([DTensor.from_local(torch.ones(2), mesh, [Partial()])], torch.device("cpu"))


def muon_updates(world):
    """All numbers of some matrices after three updates in float64."""
    shapes = [(5, 4)] * 4 + [(2, 7)] * 3
    parameters = divided([torch.ones(shape, dtype=torch.float64) for shape in shapes])
    optimizer = Muon(parameters, lr=0.1)
    for step in range(3):
        set_gradients(parameters, step)
        optimizer.step()
    return whole_numbers(parameters)


def resumed_8_bit(world):
    """All numbers of a matrix whose parts cut blocks of 256, after six updates: at once, and with state that was saved
    after three."""
    (whole,) = divided([torch.ones(50, 101)])
    optimizer = AdamW8bit([whole], lr=0.1)
    for step in range(6):
        if step == 3:
            (resumed,) = divided([whole.full_tensor().detach()])
            again = AdamW8bit([resumed], lr=0.1)
            again.load_state_dict(optimizer.state_dict())
        for parameter, each in [(whole, optimizer)] + ([(resumed, again)] if step >= 3 else []):
            set_gradients([parameter], step)
            each.step()
    return whole_numbers([whole]), whole_numbers([resumed])


def divided_experts(world):
    """Output, and gradients of the input and of this process's experts, of experts that all processes divide and of
    whole ones: of tokens that are routed unevenly, and of such that all have one expert; the last process has none."""
    config = DecoderConfig(width=8, heads=1, experts=ExpertsConfig(count=2 * world.size, width=16))
    torch.manual_seed(0)
    whole = Experts(config).double()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter)
    mesh = init_device_mesh("cpu", (world.size,), mesh_dim_names=("experts",))
    own = DividedExperts(whole, mesh, torch.device("cpu"))
    found = []
    for counts in (
        [[3, 0, 1, 7, 0, 2], [0, 5, 0, 0, 1, 0], [0] * 6],
        [[0, 4, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0], [0] * 6],
    ):
        inputs = [torch.randn(sum(each), 8, dtype=torch.float64, requires_grad=True) for each in counts]
        ends = [torch.tensor(each).cumsum(0).to(torch.int32) for each in counts]
        outputs = [whole(x, each) for x, each in zip(inputs, ends, strict=True)]
        grads = torch.autograd.grad(sum(out.pow(3).sum() for out in outputs), [inputs[world.rank], *whole.parameters()])
        x = inputs[world.rank].detach().clone().requires_grad_()
        out = own(x, ends[world.rank])
        ours = torch.autograd.grad(out.pow(3).sum(), [x, *own.parameters()])
        part = slice(2 * world.rank, 2 * world.rank + 2)
        expected = [outputs[world.rank], grads[0], *(grad[part] for grad in grads[1:])]
        pairs = zip([out, ours[0], *(grad.to_local() for grad in ours[1:])], expected, strict=True)
        found += [(one.flatten().tolist(), other.flatten().tolist()) for one, other in pairs]
    return found


def dry_run(world, config):
    """What ``--dry_run`` says in this process."""
    console = Console(file=io.StringIO(), width=300, quiet=not world.is_main)
    describe_run(config, console=console, world=world)
    return console.file.getvalue()


def stand_still(model, tokenizer):
    """An evaluation in which the last process never comes back, as one whose disk does not answer."""
    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(15)
    return {}


def vocab_parallel_losses(world, path, logits, target, weight, options, bounds):
    """This process's part of ``vocab_parallel_cross_entropy``: what it returns, and the gradient of its logits, for one
    set of options after the other."""
    from llmfast.kernels import backend, vocab_parallel_cross_entropy

    first, end = bounds[world.rank]
    found = []
    with backend(path):
        for each in options:
            given = dict(each)
            if given.pop("weighted", False):
                given["weight"] = weight
            part = logits[..., first:end].clone().requires_grad_()
            given |= {"first_class": first, "vocabulary": logits.shape[-1], "return_lse": True, "return_z_loss": True}
            loss, *beside = vocab_parallel_cross_entropy(part, target, **given)
            (loss.square().sum() + beside[0].sum()).backward()
            found.append([x.detach().tolist() for x in (loss, *beside, part.grad)])
    return found
