"""Pipelines: command lines of llmfast that build on one another, run in order and resumed where they stopped."""
