"""What the checking commands share: findings, printed as they come."""

from typing import Literal, NamedTuple

from rich.console import Console

Verdict = Literal["ok", "note", "FAIL"]
_STYLES = {"ok": "green", "note": "yellow", "FAIL": "bold red"}


class Finding(NamedTuple):
    """The outcome of one check: what was checked, how it went, and the numbers behind it."""

    name: str
    verdict: Verdict
    detail: str


def passed(name: str, holds: bool, detail: str, otherwise: Verdict = "FAIL") -> Finding:
    """``"ok"`` if the check holds."""
    return Finding(name, "ok" if holds else otherwise, detail)


def print_finding(console: Console, finding: Finding) -> None:
    verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict:4}[/]"
    console.print(f"  {verdict}  {finding.name}: {finding.detail}", highlight=False, soft_wrap=True)
