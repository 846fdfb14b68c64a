"""How a model lies on the processes of a run: copied (DDP), divided (FSDP2), or divided in groups (HSDP)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llmfast.data.shards import Share
from llmfast.training.config import ParallelConfig
from llmfast.training.distributed import World


class Placement:
    """A model on its processes.

    ``forward`` is what to call; ``model`` keeps the plain names of parameters, as a checkpoint has them.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ParallelConfig,
        world: World,
        *,
        device: torch.device,
        precision: torch.dtype,
        compile: bool,
    ):
        self.world, self.device = world, device
        self.is_divided = world.size > 1 and config.strategy != "ddp"
        self.data_share = Share(world.rank, world.size)
        if self.is_divided:
            self._divide(model, config, precision)
        else:
            model.to(device)
        self.model = model
        # The compiled module shares its parameters; checkpoints are made of the plain one, so that no name in them
        # carries the compiler's prefix.
        self.forward: nn.Module = torch.compile(model) if compile else model
        if world.size > 1 and not self.is_divided:
            self.forward = DistributedDataParallel(
                self.forward, gradient_as_bucket_view=True, broadcast_buffers=False
            )

    def _divide(self, model: nn.Module, config: ParallelConfig, precision: torch.dtype) -> None:
        low = precision != torch.float32
        options = {
            "mesh": _mesh(config, self.world, self.device),
            "mp_policy": MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
            if low
            else MixedPrecisionPolicy(),
            "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
            if config.cpu_offload
            else OffloadPolicy(),
        }
        for block in model.blocks:
            fully_shard(block, **options)
        fully_shard(model, **options)
        for name, buffer in model.named_buffers():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer.to(self.device))

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one part of a batch: gradients travel between processes with the last one."""
        if self.is_divided:
            self.model.set_requires_gradient_sync(last)
        waits = isinstance(self.forward, DistributedDataParallel) and not last
        with self.forward.no_sync() if waits else contextlib.nullcontext():
            yield

    def gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, the same in every process."""
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients)).to(self.device)

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply every gradient by ``factor``."""
        for parameter in self.model.parameters():
            if (gradient := parameter.grad) is not None:
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                local.mul_(factor.to(local.device))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be divided between processes, whole (all of them must ask)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _mesh(config: ParallelConfig, world: World, device: torch.device) -> DeviceMesh:
    if config.strategy == "fsdp":
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    group = config.group or world.local_size
    if world.size % group:
        raise ValueError(f"parallel.group {group} does not divide the {world.size} processes")
    return init_device_mesh(device.type, (world.size // group, group), mesh_dim_names=("copy", "shard"))
