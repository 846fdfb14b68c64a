"""``llmfast look``: what happens inside a model."""
