"""Checking what a model wrote: numbers, formulas, and code in a process with limits."""
