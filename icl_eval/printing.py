"""How commands print: prose as wide as the terminal, and tables whose numbers are never cut."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

FILE_WIDTH = 130
"""Columns of prose where the output is no terminal."""


def new_console(*, quiet: bool = False) -> Console:
    """A console as wide as the terminal; in files and pipes, as wide as :data:`FILE_WIDTH`."""
    console = Console(quiet=quiet)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def print_table(console: Console, table: Table) -> None:
    """Print a table of strings, its caption as prose. In a terminal too narrow for it, the columns follow in parts that
    each begin with the first column; elsewhere it is as wide as it is.
    """
    first, *others = table.columns
    gap = 1 if table.collapse_padding else 2
    parts: list[list[Column]] = [[first]]
    for column in others:
        needed = sum(_width(each) + gap for each in (*parts[-1], column)) - gap
        if console.is_terminal and needed > console.width and len(parts[-1]) > 1:
            parts.append([first])
        parts[-1].append(column)
    if table.title:
        console.print(table.title, style="table.title")
    for part in parts:
        _print_columns(console, table, part)
    if table.caption:
        console.print(table.caption, highlight=False)


def _print_columns(console: Console, table: Table, columns: list[Column]) -> None:
    part = Table(
        box=None,
        header_style=table.header_style,
        pad_edge=table.pad_edge,
        collapse_padding=table.collapse_padding,
    )
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=True)
    for row, *cells in zip(table.rows, *(column.cells for column in columns), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    width, console.width = console.width, sum(_width(column) + 2 for column in columns)
    console.print(part)
    console.width = width


def _width(column: Column) -> int:
    """Columns of the terminal that the widest line of header or cells takes."""
    lines = (line for cell in (column.header, *column.cells) for line in str(cell).splitlines())
    return max(map(cell_len, lines), default=0)
