"""Rollouts: answers that the policy samples, as tokens with the log-probabilities that they were drawn with."""
