"""Policy optimization: tasks that train a model on the rewards of its own answers."""
