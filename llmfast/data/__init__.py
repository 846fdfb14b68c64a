"""What a model is trained on: token shards, batches and loaders; documents and examples become them in its packages."""
