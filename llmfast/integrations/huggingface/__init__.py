"""Models in Hugging Face's folders (config.json and safetensors), read and written without transformers."""

from llmfast.integrations.huggingface.folder import load_huggingface, save_huggingface

__all__ = ["load_huggingface", "save_huggingface"]
