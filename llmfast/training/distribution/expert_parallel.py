"""Expert parallelism: the experts of every layer divided between a few processes, which send each other tokens.

Lepikhin et al. 2020, "GShard", section 3.2, without a capacity: every token reaches its experts, however many choose
the same one. Each process has its own part of a batch. Beside the shape letters of ``decoder.py``: X experts, P
processes that divide them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from llmfast.models.decoder import Decoder
from llmfast.models.experts import Experts, MixtureOfExperts, expert_outputs
from llmfast.training.config import ParallelConfig
from llmfast.training.distribution.sharding import local


def divide_experts(model: nn.Module, config: ParallelConfig, mesh: DeviceMesh, device: torch.device) -> None:
    """Keep this process's experts of every layer in ``model``.

    Args:
        model: what holds the decoders.
        config: how the processes divide the work.
        mesh: whose dimension ``experts`` are the processes that divide them; a dimension ``copy`` before it are those
            that hold the same experts.
        device: of this process.

    Raises:
        ValueError: a model without experts, or whose experts cannot be divided so.
    """
    for decoder in (module for module in model.modules() if isinstance(module, Decoder)):
        config.check_experts(decoder.config.experts.count)
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            module.experts = DividedExperts(module.experts, mesh, device)


class DividedExperts(nn.Module):
    """This process's experts, in place of ``Experts``: tokens are sent to those that have theirs, and come back."""

    def __init__(self, experts: Experts, mesh: DeviceMesh, device: torch.device):
        super().__init__()
        self.activation = experts.activation
        self.group = mesh.get_group("experts")
        self.size, rank = mesh["experts"].size(), mesh.get_local_rank("experts")
        divided: list[Placement] = [Shard(0)]
        copied = mesh.ndim - 1
        self.gradient_placements = [*[Partial()] * copied, *divided]
        for name, parameter in list(experts.named_parameters()):
            own = parameter.detach().chunk(self.size)[rank].to(device, copy=True)
            tensor = DTensor.from_local(own, mesh, [*[Replicate()] * copied, *divided], run_check=False)
            self.register_parameter(name, nn.Parameter(tensor, parameter.requires_grad))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (tokens, E) of this process sorted by expert, ``ends`` (X,) int32 behind each expert's last -> (tokens, E).

        The numbers of tokens are exchanged first, for which the host waits.
        """
        counts = ends.diff(prepend=ends.new_zeros(1)).view(self.size, -1)  # (P, X/P), by process that has the expert
        received = collectives.all_to_all_single(counts, None, None, self.group)  # (P, X/P), by process of the token
        to_each, from_each = torch.stack([counts.sum(1), received.sum(1)]).tolist()
        tokens = collectives.all_to_all_single_autograd(x.contiguous(), from_each, to_each, self.group)
        # They come sorted by process, then by expert.
        expert = torch.arange(received.shape[1], device=x.device).repeat(self.size)
        order = expert.repeat_interleave(received.flatten()).argsort(stable=True)
        out = self._compute(tokens[order], received.sum(0).cumsum(0).to(torch.int32))[order.argsort()]
        return collectives.all_to_all_single_autograd(out.contiguous(), to_each, from_each, self.group)

    def _compute(self, x: Tensor, ends: Tensor) -> Tensor:
        placements = self.gradient_placements
        own = {name: each.to_local(grad_placements=placements) for name, each in self.named_parameters()}
        return expert_outputs(self.activation, x, ends, own)


def finish_gradients(model: nn.Module, factor: float) -> None:
    """Add up the gradients of experts over the processes that have the same ones, and multiply them by ``factor``."""
    for module in model.modules():
        if isinstance(module, DividedExperts):
            for parameter in module.parameters():
                if parameter.grad is not None:
                    if parameter.grad.placements != parameter.placements:
                        parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
                    local(parameter.grad).mul_(factor)
