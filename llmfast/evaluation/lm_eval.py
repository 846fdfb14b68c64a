"""``python -m llmfast.evaluation.lm_eval``: the command line of lm-evaluation-harness with the model ``llmfast``."""

from lm_eval.__main__ import cli_evaluate

from llmfast.evaluation import harness  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
