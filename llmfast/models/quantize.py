"""Weights in 4 bits, layer by layer, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ..kernels import NF4Linear, from_bitsandbytes


def quantize_model(
    module: nn.Module,
    skip: Sequence[str] = ("lm_head",),
    *,
    block_size: int = 64,
    double_quant: bool = True,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> nn.Module:
    """Replaces the linear layers of ``module``, in place, by ``NF4Linear`` (QLoRA, arXiv:2305.14314).

    Layers that bitsandbytes has quantized are taken over to the bit, and those that are ``NF4Linear`` are left alone.
    Others are taken one after another, and the weight of each is let go as soon as it is quantized: besides what was
    there, never more than one layer is held.

    Args:
        module: any module, also one of transformers.
        skip: names of layers to leave alone: a full name, or its last parts, as ``lm_head`` or ``mlp.gate``.
        block_size, double_quant: see ``llmfast.kernels.quantize_nf4``.
        device: where to quantize, and to leave the quantized layers; None is where each layer is. With ``"cuda"`` a
            model on the CPU arrives on the GPU without ever being there in 16 bits; the rest of it is for the
            caller to move.
        progress: show a bar, on a terminal.

    Returns:
        ``module``.

    Raises:
        ValueError: for a name in ``skip`` that fits nothing, or a module without a layer to quantize.

    Example::

        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
        quantize_model(model, skip=())
    """
    linears = [name for name, layer in module.named_modules(remove_duplicate=False) if _is_linear(layer)]
    for wanted in skip:
        if wanted != "lm_head" and not any(_matches(name, wanted) for name in linears):
            raise ValueError(f"skip names {wanted!r}, but no linear layer is called so")
    names = [name for name in linears if name and not any(_matches(name, wanted) for wanted in skip)]
    if not names:
        raise ValueError(f"{type(module).__name__} has no linear layer to quantize besides {tuple(skip)}")
    places: dict[int, list[str]] = {}  # a layer that is used twice stays one layer
    for name in names:
        places.setdefault(id(module.get_submodule(name)), []).append(name)
    for shared in _shown(list(places.values()), progress):
        linear = module.get_submodule(shared[0]).to(device=device)
        layer = _in_4_bits(linear, block_size, double_quant).train(linear.training)
        for name in shared:
            module.set_submodule(name, layer)
    return module


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or _is_of_bitsandbytes(layer)


def _is_of_bitsandbytes(layer: nn.Module) -> bool:
    return type(layer).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4")


def _in_4_bits(linear: nn.Module, block_size: int, double_quant: bool) -> NF4Linear:
    if _is_of_bitsandbytes(linear):
        return NF4Linear.from_tensor(from_bitsandbytes(linear.weight), linear.bias)
    return NF4Linear.from_linear(linear, block_size, double_quant)


def quantize_decoder(decoder: nn.Module, *, progress: bool = True) -> nn.Module:
    """Put the linear layers of a decoder's blocks in 4 bits, in place, one after another (``quantize_model``).

    Layers that are in 4 bits stay as they are: none is quantized twice. The embedding table, the output head and gates
    of one row keep their numbers, and so do the stacked matrices of experts, which are no linear layers.

    Returns:
        ``decoder``.
    """
    linears = {name: layer for name, layer in decoder.named_modules() if type(layer) is nn.Linear}
    skipped = [name for name, layer in linears.items() if ".blocks." not in f".{name}" or layer.out_features == 1]
    if len(skipped) == len(linears):
        return decoder
    return quantize_model(decoder, skip=skipped, progress=progress)


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _shown(layers: list[list[str]], progress: bool) -> Iterator[list[str]]:
    """The layers, while a bar on standard error shows how far it is."""
    console = Console(stderr=True)
    columns = (TextColumn("quantizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        yield from bar.track(layers)
