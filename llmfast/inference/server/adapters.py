"""Adapters of one model, offered beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmfast.inference.config import EngineConfig
from llmfast.inference.engine import Engine
from llmfast.inference.opening import open_for_inference
from llmfast.inference.torch_runner import TorchRunner
from llmfast.integrations.opening import open_model
from llmfast.integrations.peft.files import is_adapter_folder, load_adapter, save_adapter
from llmfast.models.adapters.switch import only_switch, set_adapter, switches
from llmfast.models.decoder import Decoder


def engine_with_adapters(
    path: Path,
    adapters: Mapping[str, Path],
    config: EngineConfig,
    *,
    device: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    **opening: Any,
) -> tuple[Engine, dict[str, str]]:
    """An engine on the model of a folder (see ``Engine.open``) with adapters.

    Returns:
        The engine, and its name of each adapter.

    Raises:
        ValueError: as ``Engine.open`` and ``add_adapters``, or weights that adapters cannot be put on.
    """
    if not adapters:
        return Engine.open(path, config=config, device=device, dtype=dtype, weights=weights, **opening), {}
    if weights not in (None, "nf4"):
        raise ValueError(f"weights {weights} cannot have adapters: leave one of the two out")
    if dtype is None and weights is None and (device == "cpu" or not torch.cuda.is_available()):
        dtype = "float32"  # in PyTorch: the decoder for CPUs has no adapters
    opened = open_for_inference(path, config=config, device=device, dtype=dtype, weights=weights, **opening)
    assert isinstance(opened.runner, TorchRunner)
    model = opened.runner.model
    names = add_adapters(model, adapters)
    # Its own runner again, since one looks at a model's adapters once.
    return Engine(model, opened.tokenizer, config, ends=opened.ends), names


def add_adapters(model: Decoder, folders: Mapping[str, Path]) -> dict[str, str]:
    """Load adapters into a model, which is used as before.

    Args:
        model: their base, perhaps with an adapter already.
        folders: of PEFT's files, or runs that trained adapters, by the name that each is to have.

    Returns:
        The name in the model of each.

    Raises:
        ValueError: no adapter there, a damaged file, or one that was trained on another base.
    """
    if not folders:
        return {}
    active = only_switch(model).active if switches(model) else None
    for number, (name, folder) in enumerate(folders.items()):
        if not folder.exists():
            raise ValueError(f"the adapter {name}: {folder} does not exist")
        _load(model, folder, f"served_{number}")
    set_adapter(model, active)
    return {name: f"served_{number}" for number, name in enumerate(folders)}


def _load(model: Decoder, folder: Path, name: str) -> None:
    if is_adapter_folder(folder):
        load_adapter(model, folder, name)
        return
    with tempfile.TemporaryDirectory() as written:  # a run's adapter by way of its files in PEFT's form
        trained, _ = open_model(folder)
        if not switches(trained):
            raise ValueError(f"{folder} holds a whole model and not an adapter: serve it by itself")
        (trained_name,) = only_switch(trained).configs
        save_adapter(trained, Path(written) / "adapter", trained_name)
        try:
            load_adapter(model, Path(written) / "adapter", name)
        except ValueError as error:
            raise ValueError(str(error).replace(str(Path(written) / "adapter"), str(folder))) from None
