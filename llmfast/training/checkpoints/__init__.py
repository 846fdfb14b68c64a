"""Checkpoints: written whole or not at all, by one process or by all, and checked when they are read."""
