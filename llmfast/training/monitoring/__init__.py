"""What a person and other programs see of a run, and the watch for bad steps."""
