"""How an objective is placed on processes: its model copied (DDP), divided (FSDP2, HSDP, tensor parallel), or both."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llmfast.data.shards import Share
from llmfast.evaluation.team import Team
from llmfast.kernels import NF4Linear
from llmfast.models.decoder import Block
from llmfast.training.config import ParallelConfig
from llmfast.training.distribution.expert_parallel import divide_experts, finish_gradients
from llmfast.training.distribution.mesh import MeshShape, device_mesh, mesh_shape, models_mesh
from llmfast.training.distribution.sharding import Sharding, local, norm, placed, sharding_of
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
        self.model = model
        self.is_divided = world.size > 1 and config.strategy != "ddp"
        self.tensor: TensorParallel | None = None
        shape = mesh_shape(config, world)
        mesh = device_mesh(shape, device) if self.is_divided or config.tensor > 1 else None
        self.experts = config.experts
        if self.divides_experts:
            experts = device_mesh(mesh_shape(config, world, "experts"), device, "experts")
            divide_experts(model, config, experts["experts"] if self.is_divided else experts["copy", "experts"], device)
        if not self.is_divided:  # FSDP2 moves its parts alone
            model.to(device)
        if config.tensor > 1:
            assert mesh is not None
            self.tensor = TensorParallel(model, mesh.get_group("tensor"), device)
        if self.is_divided:
            assert mesh is not None
            dimensions = "shard" if config.strategy == "fsdp" else ("copy", "shard")
            self._divide(mesh[dimensions], experts[dimensions] if self.divides_experts else None, config, precision)
        for child in objective.children():
            if child is not model:
                child.to(device)
        self.data_share = Share(world.rank // config.tensor, world.size // config.tensor)
        self.team = Team(self.data_share, self._sum_of_shares)
        self.shardings = self._shardings(shape)
        # The compiled module shares its parameters; checkpoints are made of the plain one, so that no name in them
        # carries the compiler's prefix.
        self.forward: nn.Module = torch.compile(objective) if compile and self.is_whole else objective
        if self.data_share.count > 1 and not self.is_divided:
            # The processes that hold copies of this process's parameters; None means all processes.
            group = None if mesh is None else mesh.get_group("copy")
            if self.divides_experts:
                own = [name for name, each in objective.named_parameters() if isinstance(each, DTensor)]
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, own)
            self.forward = DistributedDataParallel(
                self.forward, process_group=group, gradient_as_bucket_view=True, **_OWN_BUFFERS
            )

    def _divide(
        self, mesh: DeviceMesh, experts: DeviceMesh | None, config: ParallelConfig, precision: torch.dtype
    ) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        model, low = self.model, precision != torch.float32
        if torch.__version__ < "2.12" and any(isinstance(module, NF4Linear) for module in model.modules()):
            raise ValueError(
                f"parallel.strategy {config.strategy} divides weights in 4 bits from torch 2.12 on, and this is "
                f"{torch.__version__}: use ddp"
            )
        options = {
            "mp_policy": MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
            if low
            else MixedPrecisionPolicy(),
            "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
            if config.cpu_offload
            else OffloadPolicy(),
        }
        for block in model.modules():
            if isinstance(block, Block):
                if experts is not None and block.has_experts:
                    fully_shard(block.feed_forward.experts, mesh=experts, **options)
                if low and block.has_experts:  # a router chooses in float32, whatever its block computes in
                    fully_shard(block.feed_forward.router, mesh=mesh, **options | {"mp_policy": MixedPrecisionPolicy()})
                fully_shard(block, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        for name, buffer in model.named_buffers():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer.to(self.device))

    def _shardings(self, shape: MeshShape) -> dict[str, Sharding]:
        """Those of the parameters that tensor parallel divides, by name, with FSDP2's division of the parts."""
        if self.tensor is None or not self.is_divided:
            return {} if self.tensor is None else self.tensor.parts
        group = models_mesh(shape, self.device).get_group("model")
        found = {}
        for name, parts in self.tensor.parts.items():
            owner, _, leaf = name.rpartition(".")
            inner = sharding_of(getattr(self.model.get_submodule(owner), leaf))
            found[name] = parts if inner is None else parts.around(inner, group)
        return found

    @property
    def divides_experts(self) -> bool:
        """Whether processes have different experts."""
        return self.experts > 1

    @property
    def is_whole(self) -> bool:
        """Whether each process computes with the whole model, of which FSDP2 may gather the parts."""
        return self.tensor is None and not self.divides_experts

    @property
    def saves_in_parts(self) -> bool:
        """Whether each process writes its part of a checkpoint. The parts of tensor parallel are no slices of a tensor:
        the first process writes them whole."""
        return self.tensor is None and (self.is_divided or self.divides_experts)

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
        if self.divides_experts:
            # FSDP2 has taken means over the processes with the same experts, DDP leaves their gradients alone.
            finish_gradients(self.model, 1 / (self.experts if self.is_divided else self.world.size))
        return norm([each.grad for each in self.model.parameters() if each.grad is not None], self.device)

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by ``factor``."""
        if factor == 1:
            return
        for parameter in self.model.parameters():
            if (gradient := parameter.grad) is not None:
                local(gradient).mul_(factor)

    def _sum_of_shares(self, tensor: Tensor) -> Tensor:
        """The sum over processes, of those that divide a model only the first."""
        speaks = self.tensor is None or self.tensor.rank == 0
        return self.world.sum(tensor if speaks else torch.zeros_like(tensor))

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters or optimizer state as a checkpoint has them, whole ones in the first process only (all processes
        must call this)."""
        if self.tensor is None:
            return tensors
        whole = {}
        for name, tensor in tensors.items():  # one after the other: whole tensors need not all fit the device
            one = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            one = self.tensor.gather(name, one)
            if self.world.is_main:
                whole[name] = one.cpu()
        return whole

    def shard(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process needs of a checkpoint's parameters or optimizer state."""
        if self.tensor is None:
            return tensors
        parts = {name: self.tensor.shard(name, tensor) for name, tensor in tensors.items()}
        own = dict(self.model.named_parameters())
        return {name: _part_like(part, own.get(name, own.get(name.rpartition("/")[0]))) for name, part in parts.items()}


def _part_like(tensor: Tensor, parameter: Tensor | None) -> Tensor:
    """This process's part of a tensor that is divided as its parameter is if the shapes are equal, else whole."""
    if parameter is None or parameter.shape != tensor.shape or (sharding := sharding_of(parameter)) is None:
        return tensor
    return placed(sharding.part(tensor), parameter)
