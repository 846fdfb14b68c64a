"""The processes of a run as a mesh: copies of a model, and those that divide a copy by tensor parallel and FSDP2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmfast.training.config import ParallelConfig
from llmfast.training.distribution.world import World


class MeshShape(NamedTuple):
    """How many processes there are along each dimension of the mesh, the fastest last."""

    copy: int
    """Copies of the model."""
    shard: int
    """Processes among which FSDP2 divides what each of them holds of a copy."""
    tensor: int
    """Processes that divide each matrix product."""


def mesh_shape(config: ParallelConfig, world: World) -> MeshShape:
    """The division that ``config`` asks for.

    Raises:
        ValueError: it cannot be had with this number of processes.
    """
    if world.size % config.tensor:
        raise ValueError(f"parallel.tensor {config.tensor} does not divide the {world.size} processes")
    if world.size == 1:
        return MeshShape(1, 1, 1)
    group = {"ddp": config.tensor, "fsdp": world.size, "hsdp": config.group or world.local_size}[config.strategy]
    if world.size % group:
        raise ValueError(f"parallel.group {group} does not divide the {world.size} processes")
    if group % config.tensor:
        raise ValueError(f"parallel.tensor {config.tensor} does not divide parallel.group {group}")
    return MeshShape(world.size // group, group // config.tensor, config.tensor)


def device_mesh(shape: MeshShape, device: torch.device) -> DeviceMesh:
    """The processes in this shape; all must call it."""
    return init_device_mesh(device.type, tuple(shape), mesh_dim_names=MeshShape._fields)


def models_mesh(shape: MeshShape, device: torch.device) -> DeviceMesh:
    """The same processes, by copy of the model and by place in it; those of a tensor group are next to each other."""
    return init_device_mesh(device.type, (shape.copy, shape.shard * shape.tensor), mesh_dim_names=("copy", "model"))
