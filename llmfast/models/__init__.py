"""The decoder, its configurations and its key/value cache."""
