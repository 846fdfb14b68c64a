"""Pictures as files: of what is found inside a model, and of runs side by side."""
