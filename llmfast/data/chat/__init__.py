"""Conversations: read from records of any common form, rendered by chat templates, and turned into tokens."""
