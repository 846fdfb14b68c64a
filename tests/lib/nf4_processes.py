"""Run as a program: two processes train an adapter on a 4-bit layer under FSDP2, and under DDP; prints what they found.

Each fact is the same on both processes, or the program fails.
"""

import json
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from llmfast.kernels import NF4Linear
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel


class Adapted(nn.Module):
    """A frozen layer with an adapter, then a layer that trains."""

    def __init__(self, base: NF4Linear):
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.ones(4, base.in_features) / 16)
        self.lora_b = nn.Parameter(torch.ones(base.out_features, 4) / 16)
        self.head = nn.Linear(base.out_features, 8)

    def forward(self, x):
        return self.head(self.base(x, self.lora_a, self.lora_b))


def model(seed: int) -> Adapted:
    torch.manual_seed(seed)
    return Adapted(NF4Linear.from_linear(nn.Linear(64, 37)))  # 37 rows: no even cut


def sharded(plain: Adapted) -> Adapted:
    fully_shard(plain, mesh=init_device_mesh("cpu", (2,)), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    return plain


def facts() -> dict[str, bool]:
    expected, x = model(0), torch.ones(3, 64)
    record = expected.base.weight.detach().clone()
    fsdp = sharded(model(0))
    y = fsdp(x)
    y.float().sum().backward()
    shard = fsdp.base.weight.to_local()
    full = get_model_state_dict(fsdp, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))
    other = sharded(model(1))
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(other, {k: v.full_tensor() for k, v in fsdp.state_dict().items()}, options=options)
    ddp = DistributedDataParallel(model(dist.get_rank()))  # takes the parameters of the first process
    ddp(x).sum().backward()
    bf16 = Adapted(expected.base).to(torch.bfloat16)
    bf16.load_state_dict(expected.state_dict())
    return {
        "a shard is half of the bytes": shard.dtype == torch.uint8 and shard.numel() < record.numel() * 0.6,
        "bytes gather equal": torch.equal(fsdp.base.weight.full_tensor(), record),
        "full state dict": torch.equal(full["base.weight"], record) if dist.get_rank() == 0 else True,
        "loaded into another": torch.equal(other.base.weight.full_tensor(), record),
        "sharded output": torch.equal(y, bf16(x.bfloat16())),
        "adapter got a gradient": fsdp.lora_a.grad is not None and fsdp.base.weight.grad is None,
        "bytes sent by DDP": torch.equal(ddp.module.base.weight, record),
    }


def work(rank: int, meeting_point: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_point}/meet", rank=rank, world_size=2)
    found = facts()
    every = [None, None]
    dist.all_gather_object(every, found)
    dist.destroy_process_group()
    if rank == 0:
        with open(out, "w") as file:
            json.dump({name: all(each[name] for each in every) for name in found}, file)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder, sys.argv[1]), nprocs=2, start_method="fork")
