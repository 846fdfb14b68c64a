"""The plain PyTorch definition of every op: the specification, the CPU path, and what tests compare with.

Each function computes in float32, or in float64 where its input is float64, and rounds once, to the dtype of
its result. Nothing here checks arguments: the public functions do.
"""
