"""Training that starts from a model: tasks on the one step loop."""
