"""``llmfast model info``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmfast.models.config import DecoderConfig
from llmfast.models.presets import PRESETS, preset
from llmfast.models.size import (
    active_parameters,
    cache_bytes_per_token,
    flops_by_part,
    parameters_by_part,
)
from llmfast.training.optimizers.registry import OptimizerName
from llmfast.training.preflight.memory import (
    CHECKPOINTING,
    GIB,
    OVERHEAD,
    Precision,
    TrainingSetup,
    cache_tokens,
    largest_batch,
    training_memory,
)

CUSTOMARY_SEQUENCE = 4096


def info(
    model: str,
    *,
    batch_size: int = 1,
    sequence: int | None = None,
    precision: Precision = "bfloat16",
    optimizer: OptimizerName = "adamw",
    gpu_memory: float | None = None,
) -> None:
    """Show a model's parameters, arithmetic and memory, computed from its configuration alone.

    Args:
        model: A preset (gpt2, llama-3.2-1b, ...), or a run or checkpoint folder.
        batch_size: Sequences that pass the model at a time in training.
        sequence: Tokens per sequence; the model's context, but at most 4096, if left out.
        precision: Of matrix products in training; parameters stay float32.
        optimizer: Whose state is kept.
        gpu_memory: Memory of a GPU in GiB, to say what fits it.

    Raises:
        ValueError: neither a preset nor a folder with a configuration, or sizes that cannot be.
    """
    config = _configuration(model)
    sequence = sequence or min(config.context, CUSTOMARY_SEQUENCE)
    if not 0 < sequence <= config.context:
        raise ValueError(f"sequence must be from 1 to the model's context {config.context}, got {sequence}")
    for name, value in {"batch_size": batch_size, "gpu_memory": gpu_memory}.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    setup = TrainingSetup(batch_size, sequence, precision, optimizer)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{model}[/bold]  {_describe(config)}\n")
    console.print(_parts(config, sequence))
    console.print(f"\nmemory to train: {batch_size} x {sequence:,} tokens, {precision}, {optimizer}")
    console.print(_memory(config, setup))
    console.print(f"\nkeys and values: {_size(cache_bytes_per_token(config))} per token in bfloat16")
    if gpu_memory is not None:
        _say_what_fits(config, setup, gpu_memory, console)


def _configuration(model: str) -> DecoderConfig:
    if model in PRESETS or not Path(model).is_dir():
        try:
            return preset(model)
        except ValueError as error:
            raise ValueError(f"{error} (nor is it a folder)") from None
    from llmfast.config import from_dict, read_yaml
    from llmfast.models.folder import CONFIG_FILE, checkpoints, read_json
    from llmfast.training.run_folder import RunFolder

    folder = Path(model)
    if (file := RunFolder(folder).config_file).exists():
        return from_dict(DecoderConfig, (read_yaml(file) or {}).get("model", {}))
    for checkpoint in [folder, *reversed(checkpoints(folder))]:
        if (checkpoint / CONFIG_FILE).exists():
            tree = read_json(checkpoint / CONFIG_FILE)
            return from_dict(DecoderConfig, tree.get("decoder", tree))
    raise ValueError(f"{folder} holds no model: neither config.yaml nor config.json is there")


def _describe(config: DecoderConfig) -> str:
    heads = f"{config.heads} heads of {config.head_width}"
    if config.kv_heads != config.heads:
        heads += f" ({config.kv_heads} for keys and values)"
    feed_forward = f"{config.activation} {config.ff_width:,}"
    if (experts := config.experts).count:
        feed_forward = f"{experts.count} experts of {config.expert_width:,}, {experts.active} active"
    return (
        f"{config.layers} layers of width {config.width}, {heads}, {feed_forward}, "
        f"vocabulary {config.vocab_size:,}, context {config.context:,}"
    )


def _parts(config: DecoderConfig, sequence: int) -> Table:
    counts, flops = parameters_by_part(config), flops_by_part(config, sequence)
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=18)
    for _ in range(2):
        table.add_column(justify="right", min_width=12)
    table.add_row("[bold]part", "[bold]parameters", "[bold]share")
    for part, count in counts.items():
        table.add_row(part, f"{count:,}", f"{count / config.parameters:.1%}")
    table.add_row("[bold]all", f"[bold]{config.parameters:,}", "")
    if active_parameters(config) != config.parameters:
        table.add_row("active per token", f"{active_parameters(config):,}", "")
    table.add_row()
    table.add_row("[bold]training", "[bold]FLOP/token", "")
    for part, count in flops.items():
        table.add_row(part, _flops(count), f"{count / sum(flops.values()):.1%}")
    table.add_row("[bold]all", f"[bold]{_flops(sum(flops.values()))}", "")
    return table


def _memory(config: DecoderConfig, setup: TrainingSetup) -> Table:
    """Components by row, choices of activation checkpointing by column."""
    choices = [training_memory(config, dataclasses.replace(setup, checkpointing=each)) for each in CHECKPOINTING]
    names = choices[-1]
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=18)
    for _ in CHECKPOINTING:
        table.add_column(justify="right", min_width=12)
    table.add_row("[bold]checkpointing", *(f"[bold]{each}" for each in CHECKPOINTING))
    for name in names:
        table.add_row(name, *(_size(parts[name]) if name in parts else "" for parts in choices))
    table.add_row("[bold]all", *(f"[bold]{_size(sum(parts.values()))}" for parts in choices))
    return table


def _say_what_fits(config: DecoderConfig, setup: TrainingSetup, gpu_memory: float, console: Console) -> None:
    console.print(f"\na GPU of {gpu_memory:g} GiB ({OVERHEAD / GIB:g} GiB of it left to CUDA)")
    for choice in CHECKPOINTING:
        batch = largest_batch(config, dataclasses.replace(setup, checkpointing=choice), gpu_memory * GIB)
        fits = f"{batch:,} x {setup.sequence:,} tokens at a time" if batch else "does not fit"
        console.print(f"  trains, checkpointing {choice:<10} {fits}")
    tokens = cache_tokens(config, gpu_memory * GIB)
    fits = f"with {tokens:,} tokens of keys and values" if tokens else "does not fit"
    console.print(f"  generates in bfloat16            {fits}")


def _size(count: float) -> str:
    for unit, bytes_ in {"GiB": GIB, "MiB": 2**20}.items():
        if count >= bytes_:
            return f"{count / bytes_:,.2f} {unit}" if count < 100 * bytes_ else f"{count / bytes_:,.0f} {unit}"
    return f"{count / 1024:,.1f} KiB"


def _flops(count: float) -> str:
    return f"{count / 1e9:,.3f} G"
