"""A language model: embedding, layers around swappable mixers, head; trained, prefilled and decoded in one way."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.config import Config
from icl_eval.models.backbones import Backbone, Transformer
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.losses import ChunkNLL, chunked_loss, chunked_nll
from icl_eval.models.mixers import MixerConfig, Power


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """A language model and its costs.

    Attributes:
        vocab_size: tokens of the vocabulary.
        num_layers: layers.
        mixers: the layers' mixers, repeated in this order as often as needed: one for a uniform model, several for a
            hybrid.
        backbone: the layer around the mixer.
        tied_embeddings: use the embedding matrix as the head.
        input_dim: size of real vectors that are read beside the tokens, through a projection; 0 for none.
        loss: ``"cross_entropy"`` of tokens, or ``"squared_error"`` of a number, for which the head has one output.
    """

    vocab_size: int = 256
    num_layers: int = 2
    mixers: tuple[MixerConfig, ...] = (Power(),)
    backbone: Backbone = field(default_factory=Transformer)
    tied_embeddings: bool = False
    input_dim: int = 0
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"

    def __post_init__(self) -> None:
        self.require(self.vocab_size >= 2, "vocab_size", "at least 2")
        self.require(self.num_layers >= 1, "num_layers", "at least 1")
        self.require(len(self.mixers) >= 1, "mixers", "a tuple of mixer configs, one at least")
        self.require(len({mixer.width for mixer in self.mixers}) == 1, "mixers", "of one width")
        self.require(
            self.num_layers % len(self.mixers) == 0,
            "num_layers",
            f"a multiple of the {len(self.mixers)} mixers' pattern",
        )
        self.require(self.input_dim >= 0, "input_dim", "at least 0")
        self.require(
            not self.tied_embeddings or self.loss == "cross_entropy",
            "tied_embeddings",
            f"False with loss = {self.loss!r}",
        )

    @property
    def width(self) -> int:
        return self.mixers[0].width

    @property
    def layers(self) -> tuple[MixerConfig, ...]:
        """The mixer of every layer, as it stands there."""
        layers = self.mixers * (self.num_layers // len(self.mixers))
        return tuple(mixer.after(layers[:i]) for i, mixer in enumerate(layers))

    @property
    def num_outputs(self) -> int:
        """Outputs of the head."""
        return self.vocab_size if self.loss == "cross_entropy" else 1

    @property
    def label(self) -> str:
        """The mixers' labels, for figures."""
        return " + ".join(dict.fromkeys(mixer.label for mixer in self.mixers))

    def build(self, seed: int = 0) -> "LanguageModel":
        """The model; parameters of equal name and shape start equal for equal seeds, whatever the mixer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LanguageModel(self)
        initialize(model, seed)
        return model

    def num_parameters(self) -> int:
        """Trainable parameters, counted on the model itself without allocating it."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in LanguageModel(self).parameters())

    def state_size(self, context: int) -> StateSize:
        """State elements of one sequence after ``context`` tokens, all layers."""
        return sum((self.backbone.state_size(mixer, context) for mixer in self.layers), StateSize(0, 0))

    def layer_states(self, context: int) -> tuple[StateSize, ...]:
        """State of every layer of the repeated pattern: one for a uniform model, one a mixer for a hybrid."""
        return tuple(self.backbone.state_size(mixer, context) for mixer in self.mixers)

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        """Forward FLOPs per token, averaged over ``context`` tokens; training costs three times as many."""
        layers = (self.backbone.flops_per_token(mixer, context, causal=causal) for mixer in self.layers)
        return sum(layers, Flops(2.0 * self.width * (self.input_dim + self.num_outputs), 0.0))

    def decode_flops(self, context: int) -> Flops:
        """FLOPs of decoding the last token of a context of that many."""
        weight = self.flops_per_token(context).weight
        return Flops(weight, sum(mixer.decode_state_flops(context) for mixer in self.layers))

    def executed_flops_per_token(self, context: int) -> Flops:
        """As :meth:`flops_per_token`, of the torch forms as they are executed: what is masked away is counted too."""
        counted = self.flops_per_token(context, causal=False)
        return counted + Flops(0.0, sum(mixer.masked_flops(context) for mixer in self.layers))


class LanguageModel(nn.Module):
    """Module of :class:`ModelConfig`. A state is a tuple of one a layer; ``None`` stands before the first token."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.input_proj = nn.Linear(config.input_dim, config.width, bias=False) if config.input_dim else None
        self.layers = nn.ModuleList(
            config.backbone.build(mixer, i, config.num_layers) for i, mixer in enumerate(config.layers)
        )
        self.norm = config.backbone.norm(config.width)
        self.head = nn.Linear(config.width, config.num_outputs, bias=False)
        self.head.weight.init_gain = config.backbone.head_gain  # type: ignore[attr-defined]
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.chunk_nll = ChunkNLL()

    def compile_parts(self) -> None:
        """``torch.compile`` layers, and the loss of a piece, for the shapes they meet; equal layers share a graph."""
        for layer in self.layers:
            layer.compile(dynamic=False)
        self.chunk_nll.compile(dynamic=False)

    def forward(self, tokens: Tensor, state: tuple | None = None, inputs: Tensor | None = None) -> tuple[Tensor, tuple]:
        """Logits ``[B, T, vocab]`` for tokens ``[B, T]`` that follow ``state``, and the state after them.

        A model of numbers gives ``[B, T, 1]``. ``inputs`` ``[B, T, input_dim]`` stand beside the tokens if the model
        reads any.
        """
        hidden, state = self.hidden(tokens, state, inputs)
        return self.head(hidden), state

    def hidden(
        self, tokens: Tensor, state: tuple | None = None, inputs: Tensor | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, Any]:
        """Normalised last hidden layer ``[B, T, C]``, and the state after the tokens (``None`` unless asked for).

        Raises:
            ValueError: there are no tokens.
        """
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens have shape {list(tokens.shape)}: must be [B, T] with T at least 1")
        states = state or (None,) * len(self.layers)
        x = self.embedding(tokens)
        if self.input_proj is not None:
            x = x + self.input_proj(inputs)
        new_states, first_values = [], None
        for layer, layer_state in zip(self.layers, states, strict=True):
            x, layer_state, first_values = layer(x, layer_state, first_values, return_state=return_state)
            new_states.append(layer_state)
        return self.norm(x), tuple(new_states) if return_state else None

    def nll(self, tokens: Tensor, targets: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood (nats, float32) ``[B, T]`` of the targets, and whether each is the likeliest token.

        A model of numbers gives squared errors (the negative log-likelihood of a normal distribution of variance 1/2,
        but for a constant), and NaN in place of hits. Without gradients, logits exist for
        :data:`~icl_eval.models.losses.CHUNK_TOKENS` tokens at a time only.
        """
        hidden, _ = self.hidden(tokens, inputs=inputs, return_state=False)
        if self.config.loss == "squared_error":
            error = self._errors(hidden, targets)
            return error.square(), torch.full_like(error, float("nan"))
        return chunked_nll(self.chunk_nll, hidden, self.head.weight, targets)

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The sum of :meth:`nll` times ``weights`` ``[B, T]``, to be differentiated once: logits exist for
        :data:`~icl_eval.models.losses.CHUNK_TOKENS` tokens at a time only, in the backward pass too."""
        hidden, _ = self.hidden(tokens, inputs=inputs, return_state=False)
        if self.config.loss == "squared_error":
            return (self._errors(hidden, targets).square() * weights).sum()
        return chunked_loss(self.chunk_nll, hidden, self.head.weight, targets, weights)

    def _errors(self, hidden: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.head.weight.dtype), self.head.weight)[..., 0] - targets

    def step(self, token: Tensor, state: tuple | None = None, inputs: Tensor | None = None) -> tuple[Tensor, tuple]:
        """Logits ``[B, vocab]`` after one more token ``[B]`` and its ``inputs`` ``[B, input_dim]``, and the state."""
        logits, state = self(token[:, None], state, None if inputs is None else inputs[:, None])
        return logits[:, 0], state

    @torch.no_grad()
    def generate(
        self, prompt: Tensor, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[Tensor]:
        """Tokens ``[B]``, one at a time, after a prompt ``[B, T]``; memory stays constant for mixers of constant state.

        Args:
            prompt: int64 ``[B, T]``, T >= 1.
            max_new_tokens: how many tokens to give.
            temperature: 0 takes the likeliest token; otherwise samples from ``softmax(logits / temperature)``.
            seed: of the sampling.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature = {temperature}: must be at least 0, and finite")
        sampler = torch.Generator(prompt.device).manual_seed(seed)
        hidden, state = self.hidden(prompt)
        logits = self.head(hidden[:, -1])
        for _ in range(max_new_tokens):
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                scores = logits.float()
                probabilities = ((scores - scores.amax(-1, keepdim=True)) / temperature).softmax(-1)
                token = torch.multinomial(probabilities, 1, generator=sampler)[:, 0]
            yield token
            logits, state = self.step(token, state)

    def state_size(self, context: int) -> StateSize:
        return self.config.state_size(context)

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        return self.config.flops_per_token(context, causal=causal)


def initialize(model: LanguageModel, seed: int) -> None:
    """Draw every matrix from a stream of its own, keyed by seed and parameter name; vectors keep their fixed start.

    Matrices are normal with variance 1 / fan-in, those that write to the residual stream smaller by
    ``sqrt(2 · layers)`` (Radford et al., 2019); embeddings are as the backbone says, with 0.02 where they are the head
    too. A module that starts otherwise says so by its weight's ``init_gain``, a factor on the standard deviation, and
    by ``init_orthogonal``, where the matrix is to be orthogonal.
    """
    residual = 1 / math.sqrt(2 * model.config.num_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) >> 1
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(key))
            gain = getattr(parameter, "init_gain", 1.0)
            if name == "embedding.weight":
                parameter.copy_(draw * (0.02 if model.config.tied_embeddings else model.config.backbone.embedding_std))
            elif getattr(parameter, "init_orthogonal", False):
                parameter.copy_(_orthogonal(draw) * gain)
            else:
                gain *= residual if name.endswith(("out_proj.weight", "down_proj.weight")) else 1.0
                parameter.copy_(draw * gain * parameter[0].numel() ** -0.5)


def _orthogonal(draw: Tensor) -> Tensor:
    """The orthogonal matrix of a normal draw's QR decomposition, uniform over all of its shape (Saxe et al., 2013)."""
    tall = draw if draw.shape[0] >= draw.shape[1] else draw.T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q if draw.shape[0] >= draw.shape[1] else q.T
