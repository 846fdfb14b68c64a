"""Adapters of one model, offered beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmfast.integrations.opening import open_model
from llmfast.integrations.peft.files import is_adapter_folder, load_adapter, save_adapter
from llmfast.models.adapters.switch import only_switch, set_adapter, switches
from llmfast.models.decoder import Decoder


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
