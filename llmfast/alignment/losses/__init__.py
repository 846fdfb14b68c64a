"""Losses of alignment and distillation: pure functions of log-probabilities, whose denominators are arguments.

None of them knows a model, a batch or a step: tensors in, a loss for each token, answer or pair out. ``reduce`` says
what a mean is over, so that parts of a batch and processes add up to the loss of the whole.
"""
