"""How an objective is placed on processes: its model copied (DDP), divided (FSDP2, HSDP, tensor parallel), or both."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from llmfast.data.shards import Share
from llmfast.evaluation.team import Team
from llmfast.models.decoder import Block
from llmfast.training.config import ParallelConfig
from llmfast.training.distribution.sharding import Sharding
from llmfast.training.distribution.tensor_parallel import TensorParallel
from llmfast.training.distribution.world import World
from llmfast.training.objective import Objective

# Each process counts what its own routers did: buffers must not be synchronized. The flag was renamed in newer torch.
_SYNC = "forward_sync_buffers"
_OWN_BUFFERS = {_SYNC if _SYNC in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers": False}


class Placement:
    """An objective on the processes of a run.

    ``forward`` is what to call with a batch; ``model`` is the objective's model, whose parameters keep their plain
    names, as a checkpoint has them. Processes divide the model alone; what else an objective has is copied.
    """

    def __init__(
        self,
        objective: Objective,
        config: ParallelConfig,
        world: World,
        *,
        device: torch.device,
        precision: torch.dtype,
        compile: bool,
    ):
        self.world, self.device = world, device
        model = objective.model
        self.is_divided = world.size > 1 and config.strategy != "ddp"
        self.tensor: TensorParallel | None = None
        # The processes that hold copies of this process's parameters; None means all processes.
        group = None
        if self.is_divided:
            self._divide(model, config, precision)
        elif config.tensor > 1:
            mesh = _tensor_mesh(config, world, device)
            self.tensor = TensorParallel(model.to(device), mesh.get_group("tensor"))
            group = mesh.get_group("copy")
        else:
            model.to(device)
        for child in objective.children():
            if child is not model:
                child.to(device)
        self.data_share = Share(world.rank // config.tensor, world.size // config.tensor)
        self.team = Team(self.data_share, self._sum_of_shares)
        self.model = model
        # Shardings of the parameters that are not DTensors.
        self.shardings: dict[str, Sharding] = {} if self.tensor is None else self.tensor.parts
        # The compiled module shares its parameters; checkpoints are made of the plain one, so that no name in them
        # carries the compiler's prefix.
        self.forward: nn.Module = torch.compile(objective) if compile and self.tensor is None else objective
        if self.data_share.count > 1 and not self.is_divided:
            self.forward = DistributedDataParallel(
                self.forward, process_group=group, gradient_as_bucket_view=True, **_OWN_BUFFERS
            )

    def _divide(self, model: nn.Module, config: ParallelConfig, precision: torch.dtype) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

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
        for block in model.modules():
            if isinstance(block, Block):
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
        if self.tensor is not None:
            self.tensor.finish_gradients()
            return self.tensor.gradient_norm()
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return (norm.full_tensor() if self.is_divided else norm).to(self.device)

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by ``factor``."""
        if factor == 1:
            return
        for parameter in self.model.parameters():
            if (gradient := parameter.grad) is not None:
                local = gradient.to_local() if self.is_divided else gradient
                local.mul_(factor)

    def _sum_of_shares(self, tensor: Tensor) -> Tensor:
        """The sum over processes, of those that divide a model only the first."""
        speaks = self.tensor is None or self.tensor.rank == 0
        return self.world.sum(tensor if speaks else torch.zeros_like(tensor))

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters or optimizer state as a checkpoint has them (all processes must call this)."""
        return tensors if self.tensor is None else self.tensor.gather(tensors)

    def shard(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process needs of a checkpoint's parameters or optimizer state."""
        return tensors if self.tensor is None else self.tensor.shard(tensors)


def _mesh(config: ParallelConfig, world: World, device: torch.device) -> DeviceMesh:
    if config.strategy == "fsdp":
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    group = config.group or world.local_size
    if world.size % group:
        raise ValueError(f"parallel.group {group} does not divide the {world.size} processes")
    return init_device_mesh(device.type, (world.size // group, group), mesh_dim_names=("copy", "shard"))


def _tensor_mesh(config: ParallelConfig, world: World, device: torch.device) -> DeviceMesh:
    if world.size % config.tensor:
        raise ValueError(f"parallel.tensor {config.tensor} does not divide the {world.size} processes")
    shape = (world.size // config.tensor, config.tensor)
    return init_device_mesh(device.type, shape, mesh_dim_names=("copy", "tensor"))
