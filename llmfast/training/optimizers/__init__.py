"""Optimizers, and the registry that builds those of a run."""
