"""Byte-level BPE tokenizers on the C++ engine."""
