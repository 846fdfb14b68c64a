"""The processes of a run: who they are, and how a model is placed on them."""
