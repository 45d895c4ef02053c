"""``icl-eval measure``: losses by position of any causal models on the same documents."""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, get_args

import torch
import typer

from icl_eval.commands.data import text_tasks
from icl_eval.commands.options import DeviceOption, UsersFileOption
from icl_eval.config import lookup
from icl_eval.measure_text import measure_text
from icl_eval.measured import Documents, MeasuredArm, PretrainedConfig
from icl_eval.models import ModelConfig
from icl_eval.positions import append
from icl_eval.presets import load_preset
from icl_eval.printing import new_console
from icl_eval.run import environment, make_accelerator
from icl_eval.run_folder import RunFolder, load_runs, to_json, write_atomically
from icl_eval.spans import Span, choose_spans, hash_of
from icl_eval.subjects import Subject, find_subjects
from icl_eval.summary import summarise

app = typer.Typer(add_completion=False)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_CONTEXT = 1024
Unit = Literal["bytes", "tokens"]


@app.command()
def measure(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run folders, Hugging Face folders, or names on the hub.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="A file or folder, the name of a text task, or a preset file of yours."),
    ],
    context: Annotated[
        int | None, typer.Option(min=2, help="Context to measure up to; the smallest training context if not given.")
    ] = None,
    unit: Annotated[str, typer.Option(help="What --context counts: tokens or bytes.")] = "tokens",
    spans: Annotated[int, typer.Option(min=1, help="Most spans of text to measure.")] = 256,
    split: Annotated[str, typer.Option(help="Which documents: heldout or all.")] = "heldout",
    out: Annotated[Path, typer.Option(help="Folder for the measurement's folder.")] = Path("runs"),
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    chunk: Annotated[int | None, typer.Option(min=1, help="Tokens read at a time; chosen if not given.")] = None,
    preset: UsersFileOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Keep from the network.")] = False,
) -> None:
    """Measure models on the same documents by position, into run folders; then draw figures and print tables.

    Positions count bytes, on which models of any tokeniser meet in bits per byte, and tokens of each tokeniser. Killed,
    the same command goes on with the model it stopped at.
    """
    precision = lookup(DTYPES, dtype, "dtype")
    if preset is not None:
        load_preset(preset)
    target = make_accelerator(device).device
    subjects = find_subjects(models, target, precision, trust_remote_code=trust_remote_code, offline=offline)
    known = [subject.trained_context for subject in subjects if subject.trained_context is not None]
    asked = context or min(known, default=DEFAULT_CONTEXT)
    corpus = text_tasks(data, {})[0].text()
    chosen = choose_spans(
        corpus,
        [subject.tokenizer for subject in subjects],
        context=asked,
        unit=lookup({"tokens": "tokens", "bytes": "bytes"}, unit, "unit"),
        split=lookup({"heldout": "heldout", "all": "all"}, split, "split"),
        most=spans,
    )
    settings = {"device": target.type, "precision": dtype, "chunk": chunk, "context": asked, "unit": unit}
    identity = [hash_of(chosen), settings, [[s.name, s.seed, s.identity] for s in subjects]]
    root = out / f"measured-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"
    for axis in get_args(Unit):
        arms = [{"name": name} for name in dict.fromkeys(subject.name for subject in subjects)]
        write_atomically(root / axis / "experiment.json", to_json({"arms": arms}, indent=2))
    console = new_console()
    documents = len({span.document for span in chosen})
    console.print(f"{len(chosen)} spans of {documents} documents, context {asked:,} {unit}", highlight=False)
    for subject in subjects:
        folders = {axis: RunFolder(root / axis / subject.name / f"seed{subject.seed}") for axis in get_args(Unit)}
        if not all(folder.done for folder in folders.values()):
            source = {**corpus.about, "source": data, "spans": len(chosen), "documents_measured": documents}
            _measure(subject, chosen, folders, source, settings, target)
        console.print(f"{subject.name} seed {subject.seed}: done", highlight=False)
    summarise(load_runs(root), root, console)


def _measure(
    subject: Subject,
    spans: list[Span],
    folders: Mapping[Unit, RunFolder],
    source: dict[str, Any],
    settings: dict[str, Any],
    device: torch.device,
) -> None:
    """Measure one model and write its run folders, one an axis."""
    started = perf_counter()
    model, described = subject.load()
    measured = measure_text(model, subject.tokenizer, spans, name=subject.name, chunk=settings["chunk"])
    seconds = perf_counter() - started
    for axis, folder in folders.items():
        measurement = measured.bytes if axis == "bytes" else measured.tokens
        documents = Documents(
            seq_len=len(measurement.count) - 1,
            unit=axis,
            data=str(source["source"]),
            sha256=hash_of(spans),
            vocabulary=None if axis == "bytes" else subject.tokenizer.sha256,
        )
        config = {
            "arm": MeasuredArm(name=subject.name, task=documents, model=described).to_dict(),
            "seed": subject.seed,
            "processes": 1,
            **settings,
            "command": shlex.join(["icl-eval", *sys.argv[1:]]),
            "weights": subject.identity,
            "trained_context": subject.trained_context,
            "bytes_per_token": sum(len(span.text.encode()) for span in spans) / measured.num_tokens,
            "reads_a_token_first": subject.tokenizer.opens_documents,
            "costs": {
                "context": len(measured.tokens.count) - 1,
                "parameters": _num_parameters(described),
                "state_elements": {"mathematical": measured.state_elements},
                "state_bytes": measured.state_elements * DTYPES[settings["precision"]].itemsize,
            },
        }
        folder.begin(config, environment(device), source, None)
        folder.save_positions(append(None, measurement, subject.spent))
        folder.finish(status="complete", step=subject.spent["step"], seconds=seconds)


def _num_parameters(model: ModelConfig | PretrainedConfig) -> int:
    return model.num_parameters if isinstance(model, PretrainedConfig) else model.num_parameters()
