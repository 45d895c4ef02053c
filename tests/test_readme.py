"""The README's code runs as it stands there."""

import re
from pathlib import Path

from icl_eval.kernels import power_attention

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_operator_splits_anywhere() -> None:
    (block,) = re.findall(r"```python\n(import torch\n.*?)```", README, flags=re.DOTALL)
    scope: dict = {}
    exec(block, scope)
    whole = power_attention(scope["q"], scope["k"], scope["v"], scope["log_g"], degree=2)
    assert (whole[:, 600:] - scope["rest"]).norm() / whole[:, 600:].norm() < 1e-4


def test_links_and_commands_exist() -> None:
    root = Path(__file__).parents[1]
    for target, heading in re.findall(r"\]\(([^)#h][^)#]*)#?([^)]*)\)", README):
        assert (root / target).exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", (root / target).read_text(), flags=re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in headings], f"{target}#{heading}"
    for target in re.findall(r"    make ([a-z-]+) ", README):
        assert f"\n{target}:" in (root / "Makefile").read_text()
