"""Adapters in PEFT's files (adapter_config.json, adapter_model.safetensors), read and written without peft."""

from llmfast.integrations.peft.files import load_adapter, save_adapter

__all__ = ["load_adapter", "save_adapter"]
