"""How tokenizers are measured: texts, streams of them, and the libraries, each in a process of its own."""
