"""Hugging Face's files of byte-level BPE: ``tokenizer.json``, and ``vocab.json`` with ``merges.txt``.

Their merging is told by a list of merges, ours (and tiktoken's) by the ranks of tokens; their text is normalized, cut
and searched for added tokens in steps of many kinds, ours by a pattern. Reading finds out what the engine can do by
itself, leaves the rest to Hugging Face's own library, and refuses what is not byte-level BPE, so that a tokenizer that
loads gives equal ids, offsets and texts, always.
"""
