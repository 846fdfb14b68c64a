"""The base of tasks that train a decoder on prepared data: what pretraining and finetuning have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfast.integrations.opening import Start, open_start
from llmfast.models.config import DecoderConfig
from llmfast.models.folder import write_config
from llmfast.tokenizer import Tokenizer
from llmfast.training.preflight.memory import lasting_memory


class DecoderTask:
    """Those parts of a ``Task`` that do not depend on what is learned; the rest is for subclasses."""

    config: Any
    prepared: Any
    """The data, with a split ``train`` that has a checksum."""
    tokenizer: Tokenizer
    start: Start | None
    context: int
    """Tokens in a row of full length."""

    @staticmethod
    def use_tokenizer_of_start(config: Any) -> None:
        """Fill in ``data.tokenizer`` with that of the model to start from, unless data are prepared or it is given."""
        data = config.data
        if config.start is not None and data.tokenizer is None and getattr(data, "prepared", None) is None:
            data.tokenizer = str(open_start(config.start).folder)

    def check_context(self) -> None:
        """Check that a row of full length fits into the model.

        Raises:
            ValueError: it does not.
        """
        if self.context > self.config.model.context:
            raise ValueError(
                f"data.max_tokens {self.context} is more than the model's context {self.config.model.context}"
            )

    @property
    def keeps_base(self) -> bool:
        """Whether a part of the model that is started from is frozen, and in no checkpoint."""
        return getattr(self.config, "keeps_base", False)

    def fingerprints(self) -> dict[str, str]:
        return {"data": self.prepared.train.checksum[:12], "tokenizer": self.tokenizer.fingerprint[:12]}

    def memory(self) -> dict[str, float]:
        return lasting_memory(self.decoder_config, self.config.training.optimizer)

    def base(self) -> str | None:
        return str(self.start.folder) if self.keeps_base else None

    def units(self, loss: float) -> dict[str, float]:
        return {}

    @property
    def decoder_config(self) -> DecoderConfig:
        """The decoder that is trained."""
        return self.config.model

    @property
    def model_config(self) -> Any:
        """What config.json of a checkpoint holds."""
        return self.decoder_config

    def save_assets(self, folder: Path) -> None:
        write_config(folder, self.model_config)
        self.tokenizer.save(folder)
