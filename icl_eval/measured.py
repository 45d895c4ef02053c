"""What was measured without being trained here: the documents, and models of any make."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

from icl_eval.config import Config, location
from icl_eval.models import ModelConfig
from icl_eval.statistics import Metric
from icl_eval.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Documents(Task):
    """Spans of documents, the same text for every model that is measured on them.

    Attributes:
        seq_len: what the longest span holds, in units.
        unit: what positions count: ``"bytes"``, on which models of any tokeniser meet, in bits per byte; or
            ``"tokens"`` of one vocabulary, in nats per token.
        data: where the documents came from.
        sha256: of the spans' texts.
        vocabulary: hash of the tokens that positions count; ``None`` where they count bytes.
    """

    name: ClassVar[str] = "documents"
    version: ClassVar[int] = 1

    unit: Literal["bytes", "tokens"]
    data: str = location(default="")
    sha256: str
    vocabulary: str | None = None

    @property
    def position_label(self) -> str:
        return f"context seen ({self.unit})"

    @property
    def metric(self) -> Metric:
        """What models are compared by on this axis."""
        return "bits_per_byte" if self.unit == "bytes" else "nll"

    @property
    def num_tokens(self) -> NoReturn:
        raise ValueError("documents that were measured have the vocabulary of whichever model read them")

    def build(self, seed: int) -> NoReturn:
        raise ValueError("documents that were measured cannot be trained on; use the task 'files'")


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(Config):
    """A causal model of the ``transformers`` library.

    Attributes:
        source: folder or name on the hub.
        revision: commit on the hub, or hash of the weights in a folder.
        architecture: its class.
        num_parameters, num_layers, vocab_size: its size.
        trained_context: tokens that its configuration says it was made for.
    """

    source: str = location(default="")
    revision: str
    architecture: str
    num_parameters: int
    num_layers: int
    vocab_size: int
    trained_context: int | None

    @property
    def label(self) -> str:
        """What models of one make have in common, for figures."""
        return self.architecture


@dataclass(frozen=True, kw_only=True)
class MeasuredArm(Config):
    """A model that was measured on documents; stands in a run folder where a trained arm would.

    Attributes:
        name: also the name of its folder.
        task: what it was measured on.
        model: ours or another's.
    """

    name: str
    task: Documents
    model: ModelConfig | PretrainedConfig
