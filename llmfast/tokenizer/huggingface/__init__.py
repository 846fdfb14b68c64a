"""Hugging Face's files of byte-level BPE: ``tokenizer.json``, and ``vocab.json`` with ``merges.txt``.

Their files list merges in order, where our engine (like tiktoken) uses ranks of tokens; they normalize, split and
search text in steps of many kinds, where the engine uses one pattern. Reading translates what the engine can do by
itself, leaves the rest to Hugging Face's own library, and refuses what is not byte-level BPE. A tokenizer that loads
gives ids, offsets and texts equal to those of Hugging Face.
"""
