"""Labeled texts, instructions, preferences and prompts: read from records, prepared, and batches of them."""
