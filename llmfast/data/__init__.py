"""Corpora, token shards and the batch loader."""
