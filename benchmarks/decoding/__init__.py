"""Decoding on a CPU: each library in a process of its own, which reads jobs and answers with seconds."""
