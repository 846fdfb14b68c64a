"""A classifier over HTTP: the route ``/classify``, as vLLM calls it, beside those that every server has."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import AfterValidator

from llmfast.finetuning.predict import Prediction, load_classifier, load_temperature, predict
from llmfast.inference.server.errors import ApiError, handle_errors
from llmfast.inference.server.limits import Limits as LimitsMiddleware
from llmfast.inference.server.routes import body_of
from llmfast.inference.server.schemas import Body
from llmfast.inference.server.service import Limits
from llmfast.models.classifier import SequenceClassifier
from llmfast.tokenizer import Tokenizer

MOST_TEXTS = 1024


def _texts(value: Any) -> list[str]:
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(each, str) for each in several):
        raise ValueError("must be a text or a list of texts")
    if len(several) > MOST_TEXTS:
        raise ValueError(f"must have at most {MOST_TEXTS} texts, got {len(several)}")
    return several


class ClassifyRequest(Body):
    model: str
    input: Annotated[Any, AfterValidator(_texts)]


class ClassifierService:
    """A classifier that answers one request after the other.

    Args:
        model: in evaluation mode.
        tokenizer: that of the model.
        name: of the model in requests.
        temperature: what logits are divided by.
    """

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer, name: str, *, temperature: float = 1.0):
        self.model, self.tokenizer, self.name, self.temperature = model, tokenizer, name, temperature
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    def open(cls, path: Path, name: str, *, base: Path | None = None, device: str = "cpu") -> ClassifierService:
        """The classifier of a folder, as for ``load_classifier``.

        Raises:
            ValueError: no classifier there, a damaged file, or a base that is missing or another one.
        """
        model, tokenizer = load_classifier(path, base=base)
        return cls(model.to(device), tokenizer, name, temperature=load_temperature(path))

    async def classify(self, texts: list[str]) -> list[Prediction]:
        """What the classifier says of each text.

        Raises:
            ApiError: the model has diverged.
        """
        async with self._one_at_a_time:
            try:
                return await asyncio.to_thread(self._classify, texts)
            except ValueError as error:
                raise ApiError(500, str(error)) from None

    def _classify(self, texts: list[str]) -> list[Prediction]:
        return list(predict(self.model, self.tokenizer, texts, temperature=self.temperature))


def make_classifier_app(service: ClassifierService, *, api_key: str = "", limits: Limits | None = None) -> FastAPI:
    """An ASGI application that serves a classifier.

    Args:
        service: the classifier.
        api_key: that clients must send; empty for none.
        limits: of requests; those of replies do not matter here.
    """
    app = FastAPI(title="llmfast", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    config = service.model.config

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        about = {"problem": config.problem, "labels": list(config.labels), "max_model_len": config.max_tokens}
        model = {"id": service.name, "object": "model", "created": started, "owned_by": "llmfast", **about}
        return {"object": "list", "data": [model]}

    @app.post("/classify")
    async def classify(body: Annotated[ClassifyRequest, Depends(body_of(ClassifyRequest))]) -> dict[str, Any]:
        if body.model != service.name:
            message = f"model {body.model!r} is not here; there is {service.name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        found = await service.classify(body.input)
        data = [{"index": index, **as_json(each, config.problem)} for index, each in enumerate(found)]
        return {"object": "list", "created": int(time.time()), "model": service.name, "data": data}

    handle_errors(app)
    limits = limits or Limits()
    app.add_middleware(LimitsMiddleware, api_key=api_key, max_body=limits.max_body, body_timeout=limits.body_timeout)
    return app


def as_json(prediction: Prediction, problem: str) -> dict[str, Any]:
    """A prediction in vLLM's fields (``label``, ``probs``, ``num_classes``) and in those that it has no name for."""
    return {
        "label": prediction.label if problem == "single_label" else None,
        "probs": list(prediction.probabilities.values()),
        "num_classes": len(prediction.probabilities),
        # Not in vLLM's API:
        "labels": list(prediction.labels),
        "probabilities": prediction.probabilities,
        "value": prediction.value,
        "was_cut": prediction.was_cut,
    }
