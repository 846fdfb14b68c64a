"""Rewards: what a sampled answer is worth, as functions of (prompt, tokens, text, answer)."""
