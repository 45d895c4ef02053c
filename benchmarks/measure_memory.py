"""Peak memory of ``icl-eval measure`` by context, for a Llama-like model of 124 M parameters with random weights.

    python benchmarks/measure_memory.py --out results/measure_memory

Every case is a process of its own that measures one span of text. A case in full reads all of it. Where that takes too
long, a case reads the first chunk and the last, and between them fills the key-value cache with random numbers: what
stands in memory while the last chunk is read, which is the peak, is the same; contexts that are measured both ways show
it. Writes ``measure_memory.json``: for each case peak memory (of the process, or on a GPU of torch's allocator), the
bytes of weights and cache, and seconds; and machine, versions and command.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from icl_eval.causal import HuggingFaceModel
from icl_eval.measure_text import measure_text
from icl_eval.run import environment
from icl_eval.spans import Span
from icl_eval.text_tokens import ByteTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FULL = (4_096, 8_192, 16_384)
ENDS = (4_096, 16_384, 65_536, 131_072)


class EndsOnly(HuggingFaceModel):
    """Reads the first chunk and the last; what lies between leaves random keys and values in the cache."""

    def read(
        self, tokens: Tensor, state: Any, *, logits: bool = True, context: int | None = None
    ) -> tuple[Tensor | None, Any]:
        seen = 0 if state is None else state.get_seq_length()
        if seen == 0 or seen + tokens.shape[1] == context:
            return super().read(tokens, state, context=context, logits=logits)
        for layer in state.layers:
            shape = layer.keys[..., :1, :].expand(-1, -1, tokens.shape[1], -1)
            layer.update(torch.randn_like(shape), torch.randn_like(shape))
        return None, state


def peak(context: int, dtype: str, device: str, ends: bool) -> dict[str, Any]:
    """Bytes and seconds of one case, in this process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50_304, max_position_embeddings=context, hidden_size=768, intermediate_size=2_048,
        num_hidden_layers=12, num_attention_heads=12, tie_word_embeddings=True,
    )  # fmt: skip
    target = torch.device(device)
    model = (EndsOnly if ends else HuggingFaceModel)(LlamaForCausalLM(config).to(DTYPES[dtype]), target)
    start = time.perf_counter()
    text = "the quick brown fox jumps over the lazy dog. " * (context // 45 + 1)
    measured = measure_text(model, ByteTokenizer(), [Span(0, text[: context + 1])], name="llama")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "context": context,
        "dtype": dtype,
        "read": "ends" if ends else "full",
        "peak_bytes": torch.cuda.max_memory_allocated(target) if target.type == "cuda" else rss,
        "parameters": model.model.num_parameters(),
        "weight_bytes": model.model.num_parameters() * DTYPES[dtype].itemsize,
        "cache_bytes": measured.state_elements * DTYPES[dtype].itemsize,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--full", nargs="*", type=int, default=FULL, help="contexts read in full, in the first dtype")
    parser.add_argument("--ends", nargs="*", type=int, default=ENDS, help="contexts of which both ends are read")
    arguments = parser.parse_args()
    cases = [(context, arguments.dtypes[0], arguments.device, False) for context in arguments.full]
    cases += [(context, dtype, arguments.device, True) for dtype in arguments.dtypes for context in arguments.ends]
    results = []
    for case in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(peak, case))
        print(results[-1], flush=True)
    about = {**environment(torch.device(arguments.device)), "cores": os.cpu_count()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", *sys.argv])
    (arguments.out / "measure_memory.json").write_text(
        json.dumps({"cases": results, **about, "command": command}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
