"""The processes of a run as a mesh: copies of a model, and those that divide a copy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmfast.training.config import ParallelConfig
from llmfast.training.distribution.world import World


class MeshShape(NamedTuple):
    """How many processes there are along each dimension of a mesh, neighbors along the last."""

    copy: int
    """Copies of the model."""
    shard: int
    """Processes among which FSDP2 divides what each of them holds of a copy."""
    inner: int
    """Processes that divide each matrix product, or the experts of each layer."""


def mesh_shape(config: ParallelConfig, world: World, inner: Literal["tensor", "experts"] = "tensor") -> MeshShape:
    """The division that ``config`` asks for: of the model, or with ``experts``, of its experts.

    Raises:
        ValueError: it cannot be had with this number of processes.
    """
    size: int = getattr(config, inner)
    if world.size % size:
        raise ValueError(f"parallel.{inner} {size} does not divide the {world.size} processes")
    if world.size == 1:
        return MeshShape(1, 1, 1)
    group = {"ddp": size, "fsdp": world.size, "hsdp": config.group or world.local_size}[config.strategy]
    if world.size % group:
        raise ValueError(f"parallel.group {group} does not divide the {world.size} processes")
    if group % size:
        raise ValueError(f"parallel.{inner} {size} does not divide parallel.group {group}")
    return MeshShape(world.size // group, group // size, size)


def check_division(config: ParallelConfig, world: World) -> None:
    """Check what can be known before there is a model.

    Raises:
        ValueError: the processes cannot divide the work so.
    """
    mesh_shape(config, world)
    mesh_shape(config, world, "experts")


def device_mesh(shape: MeshShape, device: torch.device, inner: Literal["tensor", "experts"] = "tensor") -> DeviceMesh:
    """The processes in this shape, with dimensions ``copy``, ``shard`` and ``inner``; all must call it."""
    return init_device_mesh(device.type, tuple(shape), mesh_dim_names=("copy", "shard", inner))


def models_mesh(shape: MeshShape, device: torch.device) -> DeviceMesh:
    """The same processes, by copy of the model and by place in it; those of a tensor group are next to each other."""
    return init_device_mesh(device.type, (shape.copy, shape.shard * shape.inner), mesh_dim_names=("copy", "model"))
