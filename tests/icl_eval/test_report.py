"""The report: what it says, that it needs nothing else, and that a browser shows it whole."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from icl_eval import load_runs
from icl_eval.kernel_times import find_kernel_times
from icl_eval.presets import load_preset
from icl_eval.report import write_report
from icl_eval.run_folder import RunFolderError
from tests.icl_eval.synthetic import few_resamples, write_study  # noqa: F401
from tests.icl_eval.test_claims import CENTRAL, LONG, WORLDS

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(few_resamples: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A report of a central experiment that holds, one that failed in part, one at smoke scale, and the kernels."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    smoke, table = load_preset("fig9_long_context"), load_preset("table4_equal_inference", "h200")
    write_study(runs, CENTRAL, LONG)
    write_study(runs, smoke, LONG, skip=[("power", 2)])
    write_study(runs, table, WORLDS["C14"][1], diverged=[("window", 0)])
    write_report(load_runs(runs), find_kernel_times([ROOT / "results" / "kernels"]), out)
    return out


def test_the_verdict_table_comes_first_and_is_complete(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    table, sections = text.split("\n## ", 1)
    for n in range(1, 15):
        assert f"| **C{n}** " in table
    assert "| **C12** Fig. 9a" in table
    assert re.search(r"\*\*C3\*\*.*not run.*at scale h200 it needs about \d+ GPU minutes a seed", table)
    assert re.search(r"\*\*C14\*\*.*inconclusive.*window, seed 0, ended in NaN", table)
    assert "scale: smoke scale; complete: unfinished: power seed 2" in table
    flops = re.escape(f"{CENTRAL.arms[0].budget.flops:.2g}")
    assert re.search(rf"{flops} \({flops} to \d\.\de\+16\)", table), "FLOPs, and the paper's count beside them"
    assert "icl-eval run fig9_long_context --scale h200 --seeds 0,1,2" in sections
    assert "50 to train on and 9 held out (100,000 tokens) at context 65,536." in sections
    short, long = (f"50 to train on and 9 held out (100,000 tokens) at context {n}" for n in ("1,024", "4,096"))
    assert f"{short}; {long}." in sections
    assert "Again, with commit 0000000" in sections
    assert "This is smoke scale: it shows that the preset runs and decides nothing." in sections
    assert sections.count("Contrasts, figures and the table are over the seeds that all arms have: 0, 1.") == 1


def test_markdown_and_html_say_the_same(folder: Path) -> None:
    markdown, html = ((folder / name).read_text() for name in ("report.md", "report.html"))
    parameters = f"{CENTRAL.arms[0].model.num_parameters():,}"
    for text in ("every contrast is clear of its margin", "NVIDIA H200", "speed-up over softmax", parameters):
        assert text in markdown
        assert text in html
    for path in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (folder / path).read_bytes().startswith(b"\x89PNG"), path
    assert len(re.findall("!\\[", markdown)) == html.count("<img ") >= 9
    for line in (row for row in markdown.splitlines() if row.startswith("| **C")):
        assert line.replace("\\|", "").count("|") == 9, line


def test_html_needs_nothing_else(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", html)
    assert "<script" not in html
    assert "url(" not in html
    assert "@media print" in html
    assert 'name="viewport"' in html


def test_text_of_runs_is_escaped(tmp_path: Path) -> None:
    root = write_study(tmp_path, CENTRAL, LONG, seeds=(0,))
    file = root / "experiment.json"
    file.write_text(file.read_text().replace("At a long context", "<b>At|a long context"))
    write_report(load_runs(root), None, tmp_path / "out")
    assert "&lt;b&gt;At|a" in (tmp_path / "out" / "report.html").read_text()


def test_an_arm_whose_measurement_is_damaged_is_named(tmp_path: Path) -> None:
    root = write_study(tmp_path, CENTRAL, LONG, seeds=(0,))
    file = root / "power" / "seed0" / "positions.npz"
    file.write_bytes(b"")
    write_report(load_runs(root), None, tmp_path / "out")
    (row,) = (line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if line.startswith("| power "))
    assert f"{file} is damaged" in row


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_report([], None, tmp_path / "file")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to lay the page out with; the page itself is checked above")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(folder: Path, width: int, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    measure = "document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth"
    probe.write_text((folder / "report.html").read_text().replace("</body>", f"<script>{measure}</script></body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, f"--window-size={width},2000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'data-wide="0"' in done.stdout, done.stderr
    assert done.stdout.count("<img ") >= 9
