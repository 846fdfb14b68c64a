# Runs the two commands of README.md in a container without a GPU:
#
#   docker build -t llmfast .
#   docker run --rm -v "$PWD/runs:/llmfast/runs" llmfast      trains a small model on real text; its run stays in ./runs
#   docker build --target test .                              runs the tests
FROM python:3.11-slim-bookworm AS source

# g++ builds the tokenizer engine, and torch.compile uses it when a program runs. A test uses git.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*
# torch's default wheel brings CUDA libraries along. For a smaller image, pass --build-arg PIP_EXTRA_INDEX_URL=... with
# PyTorch's index of CPU builds.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /llmfast
COPY . .

FROM source AS test
RUN python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest

FROM source AS quickstart
RUN python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e .
CMD [".venv/bin/llmfast", "quickstart"]
