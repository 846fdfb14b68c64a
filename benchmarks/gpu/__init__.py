"""The whole measurement on a machine that has a GPU, little time and no network: see ``benchmarks/gpu_run.sh``."""
