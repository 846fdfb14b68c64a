"""A QLoRA step: frozen 4-bit matrices, all with adapters of rank 16 (Dettmers et al. 2023).

Ours is the decoder with ``NF4Linear`` layers, in which queries, keys and values share one adapter, and gate and up
another; and a model of transformers with ``quantize_model`` and ``add_adapter``, as in
``examples/qlora_transformers.py``. The peer is transformers with peft and bitsandbytes. Weights are random, equal and
in bfloat16 (in float32 on a CPU, in the suite ``finetune``); adapters are in float32 under autocast, without activation
checkpointing. The check compares the loss and the gradient of the first attention's output adapter with float64, in
models of two layers. Memory is that of the weights plus the peak of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from llmfast.finetuning import LoraConfig, add_adapter
from llmfast.models.adapters.lora import Lora
from llmfast.models.config import DecoderConfig
from llmfast.models.decoder import Decoder
from llmfast.models.quantize import quantize_model

from ..contenders import Contender
from ..hugging_face import same_model, unfit
from ..jobs import SECONDS, Job, Program
from ..plain import PlainDecoder
from ..quantized import dequantized, quantize_ours, quantize_theirs, replaced
from ..results import OURS
from .train_step import SHAPES, held, loss_of

RANK, SCALE = 16, 2.0
LAYERS_CHECKED = 2
Build = Callable[[DecoderConfig], nn.Module]


class Adapted(nn.Module):
    """A linear layer with an adapter, passed to the layer if it takes one, else added to its result."""

    def __init__(self, layer: nn.Module, width: int, rows: int):
        super().__init__()
        self.layer = layer
        device = next(layer.parameters()).device
        self.lora_a = nn.Parameter(adapter_in(width, device))
        self.lora_b = nn.Parameter(torch.zeros(rows, RANK, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.lora_a, self.lora_b, SCALE)


class PlainAdapted(Adapted):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + SCALE * F.linear(F.linear(x, self.lora_a.to(x)), self.lora_b.to(x))


def adapter_in(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(width)
    return torch.randn(RANK, width, generator=generator, device=device) / width**0.5


def cases(size: str) -> Iterator[Job]:
    if size == "tiny":
        yield job("toy", SHAPES["toy"], 2, 16, "cpu", torch.bfloat16)
    else:
        yield job("Llama 8B", SHAPES["Llama 8B"], 2, 1024, "cuda", torch.bfloat16)


def job(name: str, config: DecoderConfig, batch: int, sequence: int, device: str, dtype: torch.dtype) -> Job:
    draw = torch.randint(config.vocab_size, (batch, sequence + 1), generator=torch.Generator().manual_seed(0))
    tokens, targets = (each.contiguous().to(device) for each in (draw[:, :-1], draw[:, 1:]))
    checked = replace(config, layers=LAYERS_CHECKED)
    few = tokens[:1], targets[:1]

    def contender(name: str, build: Build, **options) -> Contender:
        on_device = functools.partial(build, device=device, dtype=dtype)
        return Contender(name, lambda: program(on_device, config, tokens, targets, dtype), **options)

    def plain(wanted: torch.dtype) -> dict[str, Tensor]:
        return evidence(plain_model(checked, device, dtype, wanted), *few, wanted)

    # The matrices, at 4.5 bits per weight, are read forward and backward.
    matrices = config.parameters - 2 * config.vocab_size * config.width
    forward_and_inputs = 2 / 3  # a training step without gradients of the weights
    return Job(
        op=f"{name}, QLoRA",
        shape={"B": batch, "S": sequence, "R": RANK},
        dtype=dtype,
        pass_="training step",
        exact=lambda: plain(torch.float64),
        plain=lambda: plain(dtype),
        contenders=[
            contender(OURS, our_model),
            contender(f"transformers + {OURS}", patched_model, module="transformers", unfit=unfit(config)),
            # On a CPU, bitsandbytes quantizes bfloat16 to different codes than on a GPU.
            contender(
                "transformers + peft + bitsandbytes",
                their_model,
                module="peft",
                gpu_only=dtype == torch.bfloat16,
                unfit=unfit(config),
            ),
        ],
        work=(
            int(2 * matrices * 4.5 / 8),
            int(batch * sequence * config.flops_per_token(sequence) * forward_and_inputs),
        ),
        tokens=batch * sequence,
        seconds=SECONDS[device],
    )


def random_weights(config: DecoderConfig, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights by name, drawn on the device: the same for all contenders."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}
    generator = torch.Generator(device)

    def draw(place: int, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype, device=device)
        generator.manual_seed(place)
        return torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)

    weights = {name: draw(place, shape) for place, (name, shape) in enumerate(shapes.items())}
    if config.tie_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
    return weights


def our_model(config: DecoderConfig, device: str, dtype: torch.dtype) -> nn.Module:
    weights = random_weights(config, device, dtype)
    if config.tie_embeddings:
        del weights["head.weight"]
    model = quantize_ours(Decoder.from_tensors(config, weights).requires_grad_(False))
    for block in model.blocks:
        for parent in (block.attention, block.feed_forward):
            for name, layer in list(parent.named_children()):
                if hasattr(layer, "quantized"):
                    setattr(parent, name, Adapted(layer, layer.in_features, layer.out_features))
    return model


def plain_model(config: DecoderConfig, device: str, dtype: torch.dtype, computed: torch.dtype) -> nn.Module:
    """Plain PyTorch in ``computed`` with the weights of ``dtype``, dequantized."""
    model = PlainDecoder(config).to(device)
    model.load_state_dict(dequantized(random_weights(config, device, dtype), dtype))
    model = model.to(computed).requires_grad_(False)
    return replaced(model.blocks, lambda layer: PlainAdapted(layer, layer.in_features, layer.out_features)) and model


def patched_model(config: DecoderConfig, device: str, dtype: torch.dtype) -> nn.Module:
    model = same_model(config, random_weights(config, device, dtype), assign=True).requires_grad_(False)
    quantize_model(model, double_quant=False, progress=False)
    add_adapter(model, LoraConfig(rank=RANK, alpha=SCALE * RANK))
    for module in model.modules():
        if isinstance(module, Lora):
            module.a.data.copy_(adapter_in(module.a.shape[1], module.a.device))
    return model


def their_model(config: DecoderConfig, device: str, dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = same_model(config, random_weights(config, device, dtype), assign=True)
    model = quantize_theirs(model.requires_grad_(False))
    model.is_loaded_in_4bit = True  # as after from_pretrained; peft chooses its layers by it
    adapters = LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, adapters)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            weight = module.lora_A["default"].weight
            weight.data.copy_(adapter_in(weight.shape[1], weight.device))
    return model


def first_output_adapter(model: nn.Module) -> Tensor:
    """B of the first layer's attention output."""
    if hasattr(model, "blocks"):
        return model.blocks[0].attention.out.lora_b
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = base.model.layers[0].self_attn.o_proj
    return layer.adapters["default"]["whole"].b if hasattr(layer, "adapters") else layer.lora_B["default"].weight


def gradients(model: nn.Module, tokens: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    low = dtype == torch.bfloat16
    with torch.enable_grad(), torch.autocast(tokens.device.type, dtype if low else None, enabled=low):
        loss = loss_of(model)(tokens, targets)
    loss.backward()
    return loss.detach()


def evidence(model: nn.Module, tokens: Tensor, targets: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    loss = gradients(model, tokens, targets, dtype)
    return {"loss": loss, "gradient of an adapter": first_output_adapter(model).grad}


def program(build: Build, config: DecoderConfig, tokens: Tensor, targets: Tensor, dtype: torch.dtype) -> Program:
    def found() -> dict[str, Tensor]:
        few = build(replace(config, layers=LAYERS_CHECKED))
        result = evidence(few, tokens[:1], targets[:1], dtype)
        del few
        step()
        return result

    @functools.cache
    def prepared() -> tuple[nn.Module, AdamW]:
        model = build(config)
        return model, AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> Tensor:
        model, optimizer = prepared()
        loss = gradients(model, tokens, targets, dtype)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Program(found, step, lambda: held(prepared()[0], [prepared()[1]]))
