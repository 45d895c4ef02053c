"""Tables are printed whole, whatever the terminal."""

import io

import pytest
from rich.console import Console

from icl_eval.printing import FILE_WIDTH, new_console, print_table
from icl_eval.tables import bin_label, new_table

CELLS = [("softmax", "1.76e+16", "3.177 [2.934, 3.402]", "4,720+608"), ("power p=2", "2.2e+15", "-", "1,234,567")]


def printed(width: int, *, terminal: bool) -> list[str]:
    table = new_table("arm", "FLOPs\nspent", "loss", "state")
    for cells in CELLS:
        table.add_row(*cells)
    table.caption = "A caption of eleven words, which is as wide as prose is."
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    print_table(console, table)
    assert console.width == width
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_table_that_fits_is_one() -> None:
    wide = printed(100, terminal=True)
    assert wide == printed(20, terminal=False)[: len(wide) - 1] + wide[-1:], "files and pipes have any width"
    assert sum(line.startswith("arm") for line in wide) == 1
    assert wide[2] == "softmax   1.76e+16 3.177 [2.934, 3.402] 4,720+608"


@pytest.mark.parametrize("width", [20, 32, 40])
def test_a_terminal_too_narrow_gets_parts_and_no_number_is_cut(width: int) -> None:
    lines = printed(width, terminal=True)
    assert sum(line.startswith("arm") for line in lines) == {20: 3, 32: 3, 40: 2}[width]
    for row in CELLS:
        mine = [line for line in lines if line.startswith(row[0])]
        assert [cell for cell in row[1:] if not any(cell in line for line in mine)] == []
    longest = len("power p=2 3.177 [2.934, 3.402]")
    assert max(map(len, lines)) <= max(width, longest)


def test_prose_of_files_is_of_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert new_console().width == FILE_WIDTH


def test_a_bin_of_one_position_is_that_position() -> None:
    assert [bin_label(3, 3), bin_label(1025, 2048)] == ["3", "1,025-2,048"]
