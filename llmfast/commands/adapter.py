"""``llmfast adapter``: what adapters are, merged into their base, and written for PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from llmfast.tokenizer import Tokenizer


def info(adapter: Path, /, *, base: Path | None = None) -> None:
    """Show what an adapter is made of, and check that its base is the one that it was trained on.

    Args:
        adapter: A run folder (its newest checkpoint is used), a checkpoint, or a folder with PEFT's files.
        base: Where the base lies now, if it was moved since the training.

    Raises:
        ValueError: no adapter there, a damaged file, or a base that is missing or another one.
    """
    from llmfast.finetuning import count_parameters, train_adapter
    from llmfast.models.adapters.layers import adapted_modules
    from llmfast.models.adapters.switch import only_switch

    model, _ = _opened(adapter, base)
    (name,) = only_switch(model).configs
    config = only_switch(model).configs[name]
    train_adapter(model, name)
    print(f"adapter     rank {config.rank}, alpha {config.alpha:g}, scale {config.scale_of(''):g}", end="")
    print((", DoRA" if config.dora else "") + (", rank-stabilized" if config.rank_stabilized else ""))
    print(f"parameters  {count_parameters(model)}")
    print(f"layers      {sum(1 for _ in adapted_modules(model))}")
    for layer, module in adapted_modules(model):
        for part, update in module.adapters[name].named_children():
            print(f"            {layer} {part if part != 'whole' else ''}: {update}".replace(" :", ":"))


def merge(adapter: Path, out: Path, /, *, base: Path | None = None) -> None:
    """Add an adapter to the weights of the base that it was trained on, and write the model.

    A base in 4 bits is decoded before: the written model has 32 bits. Write a Hugging Face folder of it with
    ``llmfast model export``.

    Args:
        adapter: A run folder (its newest checkpoint is used), a checkpoint, or a folder with PEFT's files.
        out: New folder for the model.
        base: Where the base lies now, if it was moved since the training.

    Raises:
        ValueError: no adapter there, a damaged file, a base that is missing or another one, or a folder that is not
            new.
    """
    from llmfast.finetuning import merge_and_remove
    from llmfast.integrations.huggingface.folder import check_new
    from llmfast.integrations.peft.files import is_adapter_folder
    from llmfast.models.adapters.switch import only_switch
    from llmfast.models.folder import save_model

    check_new(out)
    model, tokenizer = _opened(adapter, base)
    switch = only_switch(model)
    (name,) = switch.configs
    if is_adapter_folder(adapter) and name not in switch.bases:
        print(f"not checked: {adapter} does not tell which base it was trained on")
    print(merge_and_remove(model, name))
    save_model(out, model, write_tokenizer=tokenizer.save)
    print(f"{out}: use it with llmfast generate {out}")


def export(run: Path, out: Path, /, *, base: Path | None = None) -> None:
    """Write the adapter of a run as PEFT's files, which transformers and peft load beside the base.

    Layers have the names of transformers. peft wants the base as a Hugging Face folder: ``llmfast model export`` makes
    one of a run.

    Args:
        run: A run folder (its newest checkpoint is used) or a checkpoint.
        out: New folder for the adapter.
        base: Where the base lies now, if it was moved since the training.

    Raises:
        ValueError: no adapter there, a damaged file, a base that is missing or another one, or a folder that is not
            new.
    """
    from llmfast.finetuning import save_adapter
    from llmfast.models.folder import model_folder, read_state_file
    from llmfast.tokenizer import Tokenizer

    model, _ = _opened(run, base)
    folder = model_folder(run)
    trained_on = read_state_file(folder)["base"]["path"]
    save_adapter(model, out, base=str(base or trained_on))
    Tokenizer.load(folder).save(out)
    print(f"{out}: load it with peft.PeftModel.from_pretrained(base_model, {str(out)!r})")


def _opened(adapter: Path, base: Path | None) -> tuple[nn.Module, Tokenizer]:
    """A model with exactly one adapter, and its tokenizer."""
    from llmfast.finetuning import open_model
    from llmfast.models.adapters.switch import switches

    model, tokenizer = open_model(adapter, base=base)
    if not switches(model):
        raise ValueError(f"{adapter} holds a model without an adapter")
    return model, tokenizer
