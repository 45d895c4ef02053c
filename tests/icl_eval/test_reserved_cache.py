"""Caches with room for a whole context: the library's numbers, and nothing copied."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicLayer

from icl_eval.causal import HuggingFaceModel
from icl_eval.reserved_cache import ReservedLayer

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> HuggingFaceModel:
    torch.manual_seed(0)
    return HuggingFaceModel(LlamaForCausalLM(LlamaConfig(**SIZES)), torch.device("cpu"))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(1))


def test_pieces_are_written_into_one_buffer_and_read_as_a_whole(llama: HuggingFaceModel, tokens: torch.Tensor) -> None:
    whole, _ = llama.read(tokens, None)
    state, pieces, places = None, [], set()
    for piece in tokens.split((7, 1, 20, 12), dim=1):
        logits, state = llama.read(piece, state, context=40)
        pieces.append(logits)
        places.add(tuple(x.data_ptr() for layer in state.layers for x in (layer.keys, layer.values)))
        assert state.get_seq_length() == sum(p.shape[1] for p in pieces)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert len(places) == 1
    assert llama.state_elements(state, 40) == 2 * 2 * 40 * 8


def test_beyond_its_room_a_cache_grows_as_the_librarys(llama: HuggingFaceModel, tokens: torch.Tensor) -> None:
    whole, _ = llama.read(tokens, None)
    state, pieces = None, []
    for piece in tokens.split(8, dim=1):
        logits, state = llama.read(piece, state, context=20)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert llama.state_elements(state, 40) == 2 * 2 * 40 * 8


def test_layers_that_forget_keep_their_own_cache(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = HuggingFaceModel(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)), torch.device("cpu"))
    whole, _ = model.read(tokens, None)
    first, state = model.read(tokens[:, :25], None, context=40)
    second, state = model.read(tokens[:, 25:], state, context=40)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    assert not any(isinstance(layer, ReservedLayer) or type(layer) is DynamicLayer for layer in state.layers)
    assert model.state_elements(state, 40) < 2 * 2 * 10 * 8
