"""What every op stands on: the operator, the choice between Triton and PyTorch, the chip and its launches, checks."""
