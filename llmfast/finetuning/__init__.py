"""Training that starts from a model: tasks on the one step loop, and the adapters that they train.

Importing this loads no torch: each name is imported from its module on first use.
"""

import importlib

_HOMES = {
    "LoraConfig": "llmfast.models.adapters.config",
    "add_adapter": "llmfast.models.adapters.inject",
    "adapter_tensors": "llmfast.models.adapters.inject",
    "remove_adapter": "llmfast.models.adapters.inject",
    "train_adapter": "llmfast.models.adapters.inject",
    "adapters_by_row": "llmfast.models.adapters.switch",
    "set_adapter": "llmfast.models.adapters.switch",
    "use_adapter": "llmfast.models.adapters.switch",
    "load_adapter": "llmfast.integrations.peft",
    "save_adapter": "llmfast.integrations.peft",
    "open_model": "llmfast.integrations.opening",
    "merge_adapter": "llmfast.models.adapters.merge",
    "merge_and_remove": "llmfast.models.adapters.merge",
    "unmerge_adapter": "llmfast.models.adapters.merge",
    "count_parameters": "llmfast.models.adapters.count",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmfast.finetuning' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
