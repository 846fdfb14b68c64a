"""What becomes of result files: tables, plots, and the figures in README.md and docs/."""
