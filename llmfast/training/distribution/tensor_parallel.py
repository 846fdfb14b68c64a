"""Tensor parallelism for the decoder: every matrix product of a block divided between a few processes.

Shoeybi et al. 2019, "Megatron-LM", section 3. Attention is divided by heads and the feed-forward by hidden units: the
first product of each needs no exchange, the sums that the second leaves are added over the processes. Embedding,
norms and the loss are computed by all.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Attention, Decoder
from llmfast.training.distribution.sharding import Sharding

Group = dist.ProcessGroup


class TensorParallel:
    """The decoders in ``model``, divided in place between the processes of ``group``; what is around them is copied.

    Raises:
        ValueError: heads or feed-forward width that cannot be divided so, or a mixture of experts.
    """

    def __init__(self, model: nn.Module, group: Group):
        self.model, self.group = model, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = next(model.parameters()).device
        self.parts: dict[str, Sharding] = {}
        for name, module in model.named_modules():
            if isinstance(module, Decoder):
                self._divide(module, f"{name}." if name else "")

    def _divide(self, decoder: Decoder, prefix: str) -> None:
        self._check(decoder.config)
        for number, block in enumerate(decoder.blocks):
            name = f"{prefix}blocks.{number}"
            self._divide_attention(block.attention, f"{name}.attention")
            self._divide_feed_forward(block.feed_forward, f"{name}.feed_forward", decoder.config.ff_width)

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters, or optimizer state named PARAMETER/ENTRY, put together; all processes must call it."""
        return {name: self._gather(name, tensor) for name, tensor in tensors.items()}

    def shard(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of whole parameters or optimizer state."""
        return {name: self._select(name, tensor) for name, tensor in tensors.items()}

    def finish_gradients(self) -> None:
        """Add over the processes what each computed from its own heads alone: the norms of queries and keys."""
        for name, parameter in self.model.named_parameters():
            if (".q_norm." in name or ".k_norm." in name) and parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=self.group)

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient of the whole model."""
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        divided = [gradient for name, gradient in gradients.items() if name in self.parts]
        common = [gradient for name, gradient in gradients.items() if name not in self.parts]
        squares = torch.nn.utils.get_total_norm(divided).square()
        dist.all_reduce(squares, group=self.group)
        return (squares + torch.nn.utils.get_total_norm(common).square()).sqrt()

    def _check(self, config: DecoderConfig) -> None:
        if config.experts.count:
            raise ValueError("parallel.tensor does not divide a mixture of experts; use fsdp")
        for name in ("kv_heads", "ff_width"):
            if getattr(config, name) % self.size:
                raise ValueError(f"parallel.tensor {self.size} does not divide model.{name} {getattr(config, name)}")

    def _divide_attention(self, attention: Attention, name: str) -> None:
        H, K, D = attention.heads, attention.kv_heads, attention.head_width
        starts = (0, H * D, (H + K) * D)  # of queries, keys and values among the outputs
        widths = (H * D, K * D, K * D)
        self._divide_outputs(attention.qkv, f"{name}.qkv", starts, widths)
        attention.out = self._divide_inputs(attention.out, f"{name}.out")
        attention.heads, attention.kv_heads = H // self.size, K // self.size
        attention.register_forward_pre_hook(self._copy_in)

    def _divide_feed_forward(self, feed_forward: nn.Module, name: str, width: int) -> None:
        if hasattr(feed_forward, "gate_up"):
            self._divide_outputs(feed_forward.gate_up, f"{name}.gate_up", (0, width), (width, width))
        else:
            self._divide_outputs(feed_forward.up, f"{name}.up", (0,), (width,))
        feed_forward.down = self._divide_inputs(feed_forward.down, f"{name}.down")
        feed_forward.register_forward_pre_hook(self._copy_in)

    def _divide_outputs(self, linear: nn.Linear, name: str, starts: tuple, widths: tuple) -> None:
        """Keep this process's share of each group of outputs."""
        places = [
            torch.cat([self._share(start, width, rank) for start, width in zip(starts, widths, strict=True)])
            for rank in range(self.size)
        ]
        linear.weight = self._keep(f"{name}.weight", linear.weight, 0, places)
        if linear.bias is not None:
            linear.bias = self._keep(f"{name}.bias", linear.bias, 0, places)
        linear.out_features = len(linear.weight)

    def _divide_inputs(self, linear: nn.Linear, name: str) -> SummedLinear:
        """Keep this process's share of the inputs; the outputs are summed over the processes."""
        places = [self._share(0, linear.in_features, rank) for rank in range(self.size)]
        return SummedLinear(self._keep(f"{name}.weight", linear.weight, 1, places), linear.bias, self.group)

    def _share(self, start: int, width: int, rank: int) -> Tensor:
        each = width // self.size
        return torch.arange(start + rank * each, start + (rank + 1) * each)

    def _keep(self, name: str, parameter: nn.Parameter, dim: int, places: list[Tensor]) -> nn.Parameter:
        self.parts[name] = Sharding(dim, places, self.group, self.device)
        return nn.Parameter(self.parts[name].part(parameter.detach()), parameter.requires_grad)

    def _copy_in(self, module: nn.Module, inputs: tuple) -> tuple:
        return (_CopyIn.apply(inputs[0], self.group), *inputs[1:])

    def _sharding(self, name: str, tensor: Tensor) -> Sharding | None:
        """That of a parameter, or of an entry of its optimizer state, which is divided alike unless it is a scalar."""
        return (self.parts.get(name) or self.parts.get(name.rpartition("/")[0])) if tensor.ndim else None

    def _select(self, name: str, tensor: Tensor) -> Tensor:
        sharding = self._sharding(name, tensor)
        return tensor if sharding is None else sharding.part(tensor)

    def _gather(self, name: str, tensor: Tensor) -> Tensor:
        sharding = self._sharding(name, tensor)
        if sharding is None:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.detach().contiguous(), group=self.group)
        return sharding.join(parts)


class SummedLinear(nn.Module):
    """A linear layer of which each process has some inputs: outputs are summed over the processes, then biased."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, group: Group):
        super().__init__()
        self.weight, self.bias, self.group = weight, bias, group

    def forward(self, x: Tensor) -> Tensor:
        out = _SumOut.apply(F.linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias


class _CopyIn(torch.autograd.Function):
    """The same input for all processes; backward, their gradients are summed (f in the paper)."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _SumOut(torch.autograd.Function):
    """The sum over the processes; backward, the same gradient for all (g in the paper)."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None
