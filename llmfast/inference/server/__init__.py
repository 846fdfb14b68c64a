"""The HTTP server: OpenAI's API on an engine, with a chat page and metrics."""
