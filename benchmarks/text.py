"""Preparing a corpus of a gigabyte and reading windows of 65,536 tokens from it, on the cores at hand.

    python benchmarks/text.py --out results/text

Writes a synthetic corpus into a temporary folder, prepares it as bytes and with a byte-level BPE of 16,384 tokens, each
in a process of its own, and reads random training windows. Writes ``text.json``: seconds (of the clock and of the
CPU) and peak memory of each preparation, documents, bytes and tokens, tokens/s of reading, machine, versions, command,
and the load of the machine at the beginning and at the end: what else runs there slows the clock.

The corpus is drawn from the words of the standard library's source with their frequencies, and a share of words made up
of letters, so that the vocabulary of pieces grows with the text as it does in real text.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from icl_eval.run import environment
from icl_eval.tasks import Files

SEQ_LEN = 65_536
NEW_WORDS = 0.02
"""Share of words that are made up anew."""


def write_corpus(folder: Path, num_bytes: int, document_bytes: int) -> None:
    """JSON lines of documents of about ``document_bytes`` each, every tenth held out."""
    source = "".join(file.read_text(errors="ignore") for file in sorted(Path(os.__file__).parent.glob("*.py")))
    words = np.array(source.split(), dtype=object)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    rng = np.random.default_rng(0)
    files = {split: (folder / f"{split}.jsonl").open("w") for split in ("train", "heldout")}
    written = number = 0
    while written < num_bytes:
        picked = words[rng.integers(0, len(words), document_bytes // 6)]
        new = np.flatnonzero(rng.random(len(picked)) < NEW_WORDS)
        spelt = letters[rng.integers(0, 26, (len(new), 8))]
        picked[new] = ["".join(word) for word in spelt]
        text = " ".join(picked.tolist())[:document_bytes]
        files["heldout" if number % 10 == 9 else "train"].write(json.dumps({"text": text}) + "\n")
        written += len(text.encode())
        number += 1
    for file in files.values():
        file.close()


def prepare(task: Files) -> dict[str, Any]:
    """Seconds, CPU seconds, peak memory (bytes) and outcome of one preparation, in this process."""
    start, cpu_start = time.perf_counter(), time.process_time()
    corpus = task.corpus()
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "documents": len(corpus.documents),
        "bytes": int(corpus.documents["bytes"].sum()),
        "tokens": int(corpus.sizes.sum()),
        "sha256": corpus.about["sha256"],
    }


def read(task: Files, batch_size: int, num_batches: int) -> dict[str, Any]:
    """Tokens/s of random training windows, and tokens per CPU second."""
    source = task.build(0)
    source.batch("train", 0, batch_size)
    start, cpu_start = time.perf_counter(), time.process_time()
    for index in range(1, num_batches + 1):
        source.batch("train", index, batch_size)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    tokens = num_batches * batch_size * task.seq_len
    return {
        "seq_len": task.seq_len,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--document-bytes", type=int, default=400_000)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    load = os.getloadavg()[0]
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ICL_EVAL_CACHE"] = str(Path(folder) / "cache")
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        write_corpus(corpus, arguments.bytes, arguments.document_bytes)
        for tokenizer, vocab_size in (("bytes", None), ("bpe", arguments.vocab_size)):
            task = Files(path=str(corpus), seq_len=SEQ_LEN, tokenizer=tokenizer, vocab_size=vocab_size)
            for step, function, options in (("prepare", prepare, ()), ("read", read, (8, 128))):
                with fresh.Pool(1) as pool:
                    results[f"{step} {tokenizer}"] = pool.apply(function, (task, *options))
                print(step, tokenizer, results[f"{step} {tokenizer}"], flush=True)
    about = {**environment(torch.device("cpu")), "cores": os.cpu_count(), "load_average": [load, os.getloadavg()[0]]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", *sys.argv])
    (arguments.out / "text.json").write_text(json.dumps({**results, **about, "command": command}, indent=2) + "\n")


if __name__ == "__main__":
    main()
