"""The functions behind the command line. Nothing imports them but ``llmfast.cli``."""
