"""Pictures of what ``llmfast.visualization`` finds inside a model, as files."""
