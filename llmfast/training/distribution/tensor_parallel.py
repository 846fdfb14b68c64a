"""Tensor parallelism for the decoder: every matrix product of a block divided between a few processes.

Shoeybi et al. 2019, "Megatron-LM", section 3. Attention is divided by heads and the feed-forward by hidden units: the
first product of each needs no exchange, the sums that the second leaves are added over the processes. Embedding,
norms and the loss are computed by all.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llmfast.kernels import NF4Linear
from llmfast.models.adapters.layers import Adapted
from llmfast.models.adapters.lora import WHOLE, LayerAdapter, Lora
from llmfast.models.attention import Attention
from llmfast.models.decoder import Decoder
from llmfast.training.distribution.sharding import Sharding, local, norm

Group = dist.ProcessGroup


class TensorParallel:
    """The decoders in ``model``, divided in place between the processes of ``group``; what is around them is copied.

    FSDP2 may divide the parts further afterwards.

    Args:
        model: what holds the decoders.
        group: the processes.
        device: where they exchange tensors.

    Raises:
        ValueError: heads or feed-forward width that cannot be divided so, or a mixture of experts.
    """

    def __init__(self, model: nn.Module, group: Group, device: torch.device):
        self.model, self.group = model, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = device
        self.parts: dict[str, Sharding] = {}
        # Whole parameters whose gradient is the sum of what each process computes from its own part of a layer.
        self.summed: set[str] = set()
        for name, module in model.named_modules():
            if isinstance(module, Decoder):
                self._divide(module, f"{name}." if name else "")

    def _divide(self, decoder: Decoder, prefix: str) -> None:
        self._check(decoder)
        for number, block in enumerate(decoder.blocks):
            name = f"{prefix}blocks.{number}"
            self._divide_attention(block.attention, f"{name}.attention")
            self._divide_feed_forward(block.feed_forward, f"{name}.feed_forward", decoder.config.ff_width)

    def gather(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter, or optimizer state named PARAMETER/ENTRY, put together; all processes must call it."""
        sharding = self._sharding(name, tensor)
        if sharding is None:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.detach().contiguous(), group=self.group)
        return sharding.join(parts)

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        """This process's part of a whole parameter or of optimizer state."""
        sharding = self._sharding(name, tensor)
        return tensor if sharding is None else sharding.part(tensor)

    def finish_gradients(self) -> None:
        """Add over the processes what each computed from its own part alone: the gradients of the norms of queries and
        keys, and of the factors of adapters that are not divided."""
        for name, parameter in self.model.named_parameters():
            is_summed = name in self.summed or ".q_norm." in name or ".k_norm." in name
            if is_summed and parameter.grad is not None:
                dist.all_reduce(local(parameter.grad), group=self.group)

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient of the whole model."""
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        divided = [gradient for name, gradient in gradients.items() if name in self.parts]
        common = [gradient for name, gradient in gradients.items() if name not in self.parts]
        squares = norm(divided, self.device).square()
        dist.all_reduce(squares, group=self.group)
        return (squares + norm(common, self.device).square()).sqrt()

    def _check(self, decoder: Decoder) -> None:
        config = decoder.config
        if any(isinstance(module, NF4Linear) for module in decoder.modules()):
            raise ValueError("parallel.tensor does not divide weights in 4 bits; use ddp or fsdp")
        if config.experts.count:
            raise ValueError("parallel.tensor does not divide a mixture of experts; use parallel.experts or fsdp")
        if config.qk_norm and config.qk_norm_over != "head":
            raise ValueError(
                f"parallel.tensor does not divide model.qk_norm_over {config.qk_norm_over}, only head; use fsdp"
            )
        for name in ("kv_heads", "ff_width"):
            if getattr(config, name) % self.size:
                raise ValueError(f"parallel.tensor {self.size} does not divide model.{name} {getattr(config, name)}")

    def _divide_attention(self, attention: Attention, name: str) -> None:
        H, K, D = attention.heads, attention.kv_heads, attention.head_width
        starts = (0, H * D, (H + K) * D)  # of queries, keys and values among the outputs
        widths = (H * D, K * D, K * D)
        self._divide_outputs(attention.qkv, f"{name}.qkv", starts, widths)
        attention.out = self._divide_inputs(attention.out, f"{name}.out")
        if attention.sinks is not None:
            heads = [self._share(0, H, rank) for rank in range(self.size)]
            attention.sinks = self._keep(f"{name}.sinks", attention.sinks, 0, heads)
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
        for adapter_name, adapter in self._adapters(linear, name):
            if adapter.bias is not None:
                adapter.bias = self._keep(f"{adapter_name}.bias", adapter.bias, 0, places)
            for part, lora in adapter.items():
                own = places
                if part != WHOLE:
                    own = [self._share(0, len(lora.b), rank) for rank in range(self.size)]
                    lora.start //= self.size
                for leaf in ("b", "initial_b", "magnitude"):
                    self._keep_leaf(lora, f"{adapter_name}.{part}", leaf, 0, own)
                self.summed.add(f"{adapter_name}.{part}.a")

    def _divide_inputs(self, linear: nn.Linear, name: str) -> SummedLinear:
        """Keep this process's share of the inputs; the outputs are summed over the processes."""
        places = [self._share(0, linear.in_features, rank) for rank in range(self.size)]
        for adapter_name, adapter in self._adapters(linear, name):
            for part, lora in adapter.items():
                for leaf in ("a", "initial_a"):
                    self._keep_leaf(lora, f"{adapter_name}.{part}", leaf, 1, places)
                lora.group = self.group
                self.summed |= {f"{adapter_name}.{part}.{leaf}" for leaf in ("b", "magnitude")}
        weight = self._keep(f"{name}.weight", linear.weight, 1, places)
        return SummedLinear(weight, linear.bias, self.group, linear if isinstance(linear, Adapted) else None)

    def _adapters(self, linear: nn.Linear, name: str) -> Iterator[tuple[str, LayerAdapter]]:
        for adapter_name, adapter in linear.adapters.items() if isinstance(linear, Adapted) else ():
            if not isinstance(adapter, LayerAdapter):
                raise ValueError(f"parallel.tensor does not divide {name}, which lora.modules_to_save trains in full")
            yield f"{name}.adapters.{adapter_name}", adapter

    def _keep_leaf(self, lora: Lora, name: str, leaf: str, dim: int, places: list[Tensor]) -> None:
        tensor = getattr(lora, leaf)
        if tensor is not None:
            part = self._keep(f"{name}.{leaf}", tensor, dim, places)
            setattr(lora, leaf, part if isinstance(tensor, nn.Parameter) else part.detach())

    def _share(self, start: int, width: int, rank: int) -> Tensor:
        each = width // self.size
        return torch.arange(start + rank * each, start + (rank + 1) * each)

    def _keep(self, name: str, parameter: nn.Parameter, dim: int, places: list[Tensor]) -> nn.Parameter:
        self.parts[name] = Sharding([{dim: each} for each in places], self.group, self.device)
        return nn.Parameter(self.parts[name].part(parameter.detach()), parameter.requires_grad)

    def _copy_in(self, module: nn.Module, inputs: tuple) -> tuple:
        return (_CopyIn.apply(inputs[0], self.group), *inputs[1:])

    def _sharding(self, name: str, tensor: Tensor) -> Sharding | None:
        """That of a parameter, or of an entry of its optimizer state, which is divided alike unless it is a scalar."""
        return (self.parts.get(name) or self.parts.get(name.rpartition("/")[0])) if tensor.ndim else None


class SummedLinear(nn.Module):
    """A linear layer of which each process has some inputs: outputs are summed over the processes, then biased.

    With the adapters of ``adapted``, whose updates are sums over the inputs as well.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, group: Group, adapted: nn.Module | None = None):
        super().__init__()
        self.weight, self.bias, self.group = weight, bias, group
        if adapted is not None:
            self.adapters, self.switch = adapted.adapters, adapted.switch

    def forward(self, x: Tensor) -> Tensor:
        out, adapter = F.linear(x, self.weight), None
        if hasattr(self, "switch") and self.switch.active in self.adapters:
            adapter = self.adapters[self.switch.active]
            out = adapter.change(x, out, self.weight)
        out = _SumOut.apply(out, self.group)
        if adapter is not None:
            return adapter.biased(out, self.bias)
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
