"""``icl-eval data``: look at a corpus, and freeze one as files."""

import json
import lzma
from pathlib import Path
from typing import Annotated, Any, get_args

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import typer
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich.console import Console
from rich.progress import track
from rich.table import Table

from icl_eval.config import lookup
from icl_eval.drawing import save_figure
from icl_eval.experiment import Experiment
from icl_eval.presets import load_preset, preset_files
from icl_eval.printing import new_console, print_table
from icl_eval.run_folder import RunFolderError, to_json, write_atomically
from icl_eval.tasks import TASKS, Files, SourceCode, TextTask
from icl_eval.tasks.base import SPLITS
from icl_eval.tasks.text.corpus import Corpus
from icl_eval.tasks.text.tasks import FROZEN
from icl_eval.tasks.text.tokenizers import TokenizerName

app = typer.Typer(help="Look at a corpus, and freeze one as files.", no_args_is_help=True, add_completion=False)
EXAMPLE_CHARACTERS = 320

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A file or folder, a text task's name, or a preset.")
]
WheelsOption = Annotated[str | None, typer.Option(help="Of source_code: a folder of wheels to read.")]


@app.command()
def inspect(
    source: SourceArgument,
    tokenizer: Annotated[str, typer.Option(help="bytes, bpe or gpt2, if SOURCE is a path or a task.")] = "bytes",
    vocab_size: Annotated[int | None, typer.Option(help="Of bpe.")] = None,
    tokenizer_path: Annotated[str | None, typer.Option(help="Of gpt2: folder of encoder.json and vocab.bpe.")] = None,
    wheels: WheelsOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER_OR_FILE", help="Draw the lengths, into a folder or as a file.")
    ] = None,
) -> None:
    """Print documents, lengths, bytes per token, an example and the hash of a corpus."""
    lookup(dict.fromkeys(get_args(TokenizerName)), tokenizer, "tokenizer")
    fields = {"tokenizer": tokenizer, "vocab_size": vocab_size, "tokenizer_path": tokenizer_path}
    tasks = text_tasks(source, fields | _of_wheels(source, wheels))
    console = new_console()
    for number, task in enumerate(tasks):
        corpus = task.corpus()
        if not corpus.sizes.any():
            raise ValueError(f"{source}: its documents hold no text")
        console.print(f"\n[bold]{task.name}[/bold], tokens: {task.tokenizer}")
        print_table(console, _summary(corpus))
        print_table(console, _lengths(corpus))
        if corpus.documents["group"].any():
            print_table(console, _groups(corpus))
        for key, value in corpus.about.items():
            console.print(f"{key}: {value}", highlight=False, markup=False)
        console.print(f"an example, from {_example(corpus)}", highlight=False, markup=False)
        if out is not None:
            file = out if out.suffix and not out.is_dir() else out / "document_lengths.png"
            file = file if number == 0 else file.with_stem(f"{file.stem}-{number + 1}")
            plot_lengths(corpus, file)
            console.print(f"figure: {file}", highlight=False)


@app.command()
def export(
    source: SourceArgument,
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    wheels: WheelsOption = None,
) -> None:
    """Write a corpus as compressed JSON lines with its hash, to be read by the task ``files`` anywhere."""
    if folder.exists() and not (folder.is_dir() and ((folder / FROZEN).is_file() or not any(folder.iterdir()))):
        raise ValueError(f"{folder} holds something else: name a folder that is new, empty, or an earlier export")
    corpus = text_tasks(source, _of_wheels(source, wheels))[0].text()
    for split in SPLITS:
        if not len(corpus.members(split)):
            raise ValueError(
                f"{source}: none of its documents is in the split {split!r}; add documents, or name one train… and "
                "another heldout…"
            )
    bar = Console(stderr=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            target = folder / f"{split}.jsonl.xz"
            partial = target.with_name(f".{target.name}.partial")
            with lzma.open(partial, "wt", encoding="utf-8") as file:
                for index in track(corpus.members(split), f"writing {split}", console=bar, disable=not bar.is_terminal):
                    row = corpus.documents.iloc[index]
                    text = corpus.document(index).tobytes().decode()
                    file.write(json.dumps({"name": row["name"], "source": row["group"], "text": text}) + "\n")
            partial.replace(target)
    except OSError as error:
        raise RunFolderError(f"cannot write {folder}: {error.strerror or error}") from error
    write_atomically(folder / FROZEN, to_json(corpus.about, indent=2))
    message = f"{len(corpus.documents):,} documents in {folder}, sha256 {corpus.about['sha256']}"
    Console().print(message, highlight=False, soft_wrap=True)


def text_tasks(source: str, fields: dict[str, Any]) -> list[TextTask]:
    """The text tasks that a path, a task's name or a preset stands for.

    Raises:
        ValueError: there is none.
    """
    if Path(source).suffix == ".py" or source in preset_files():
        experiment = load_preset(source)
        trained = experiment.tasks() if isinstance(experiment, Experiment) else ()
        tasks = [task for task in trained if isinstance(task, TextTask)]
        if not tasks:
            raise ValueError(f"{source}: none of its tasks is of {', '.join(sorted(_text_tasks()))}")
        return tasks
    if Path(source).exists():
        return [Files(path=source, seq_len=1, **fields)]
    named = lookup(_text_tasks(), source, "text task or path")
    try:
        return [named(seq_len=1, **fields)]
    except TypeError as error:
        raise ValueError(
            f"the task {source!r} says where its documents are in a preset; name its file ({error})"
        ) from error


def _of_wheels(source: str, wheels: str | None) -> dict[str, Any]:
    if wheels is not None and source != SourceCode.name:
        raise ValueError(f"--wheels {wheels}: only {SourceCode.name} reads wheels, not {source}")
    return {} if wheels is None else {"wheels": wheels}


def _text_tasks() -> dict[str, type[TextTask]]:
    return {name: task for name, task in TASKS.items() if issubclass(task, TextTask)}


def _summary(corpus: Corpus) -> Table:
    table = _table("split", "documents", "bytes", "tokens", "bytes/token", "shortest\n(tokens)", "median", "longest")
    for split in SPLITS:
        rows = corpus.documents[corpus.documents["split"] == split]
        if rows.empty:
            table.add_row(split, "0")
            continue
        sizes, text = rows["tokens"], rows["bytes"].sum()
        numbers = [len(rows), text, sizes.sum(), sizes.min(), int(sizes.median()), sizes.max()]
        cells = [f"{number:,}" for number in numbers]
        table.add_row(split, *cells[:3], f"{text / sizes.sum():.3f}", *cells[3:])
    return table


def _lengths(corpus: Corpus) -> Table:
    """Documents by length, and the share of the tokens in documents at least that long, by octaves."""
    heads = [f"{split}:\n{what}" for split in SPLITS for what in ("documents", "tokens in\nthese or longer")]
    table = _table("length (tokens)", *heads, "")
    octaves = np.log2(corpus.sizes).astype(int)
    most = np.bincount(octaves).max()
    for octave in range(octaves.min(), octaves.max() + 1):
        cells = []
        for split in SPLITS:
            members = corpus.members(split)
            sizes = corpus.sizes[members]
            share = sizes[sizes >= 2**octave].sum() / max(sizes.sum(), 1)
            cells += [f"{(octaves[members] == octave).sum():,}", f"{share:.1%}"]
        bar = "█" * int(np.ceil(30 * (octaves == octave).sum() / most))
        table.add_row(f"{2**octave:,} - {2 ** (octave + 1) - 1:,}", *cells, bar)
    return table


def _groups(corpus: Corpus) -> Table:
    table = _table("group", *(f"{split}:\n{what}" for split in SPLITS for what in ("documents", "bytes")))
    for group, rows in corpus.documents.groupby("group"):
        parts = [rows["bytes"][rows["split"] == split] for split in SPLITS]
        table.add_row(str(group), *(f"{number:,}" for part in parts for number in (len(part), part.sum())))
    return table


def _example(corpus: Corpus) -> str:
    """The beginning of the first held-out document, or of the first of all."""
    index = int(next(iter(corpus.members("heldout")), 0))
    tokens = corpus.document(index)[:EXAMPLE_CHARACTERS]
    text = tokens.tobytes().decode(errors="ignore") if corpus.tokenizer is None else corpus.tokenizer.decode(tokens)
    return f"{corpus.documents['name'].iloc[index]}:\n{text[:EXAMPLE_CHARACTERS]}"


def plot_lengths(corpus: Corpus, file: Path) -> None:
    """Documents by length, and tokens by the length of their document, in half octaves, a colour a split."""
    import seaborn as sns

    mpl.use("Agg")
    sns.set_theme(style="ticks", context="notebook", rc={"axes.grid": True, "grid.alpha": 0.35})
    octaves = np.floor(np.log2(corpus.sizes[corpus.sizes > 0]))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for ax, weights, label in zip(axes, (None, "tokens"), ("documents", "tokens"), strict=True):
        sns.histplot(
            corpus.documents, x="tokens", hue="split", hue_order=SPLITS, weights=weights, log_scale=2, multiple="stack",
            ax=ax, palette=["#0072B2", "#D55E00"], binwidth=0.5,
            binrange=(octaves.min(), octaves.max() + 1), alpha=0.9,
        )  # fmt: skip
        ax.set(xlabel="length of the document (tokens)", ylabel=label)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        ax.tick_params(axis="x", rotation=30)
        sns.despine(ax=ax)
    save_figure(figure, file)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or not column else "right")
    return table
