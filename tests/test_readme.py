"""The README's code runs as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from icl_eval import load_runs
from icl_eval.cli import main
from icl_eval.kernels import power_attention
from icl_eval.models import ModelConfig
from icl_eval.presets import load_preset

README = (Path(__file__).parents[1] / "README.md").read_text()
FILES = dict(re.findall(r"<!-- runs: (\S+) -->\n```python\n(.*?)```", README, flags=re.DOTALL))


@pytest.mark.parametrize("name", ["my_task.py", "my_mixer.py"])
def test_a_users_file_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text(FILES[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["icl-eval", "run", name, "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert all(run.status["status"] == "complete" for run in load_runs("runs"))


def test_the_mixer_decodes_as_it_trains(tmp_path: Path) -> None:
    import torch

    (tmp_path / "my_mixer.py").write_text(FILES["my_mixer.py"])
    model = load_preset(str(tmp_path / "my_mixer.py")).arms[0].model
    assert isinstance(model, ModelConfig)
    built, tokens = model.build().double(), torch.randint(0, 32, (2, 9))
    whole, state = built(tokens)[0], None
    for t in range(9):
        logits, state = built.step(tokens[:, t], state)
        torch.testing.assert_close(logits, whole[:, t])


def test_the_operator_splits_anywhere() -> None:
    (block,) = re.findall(r"```python\n(import torch\n.*?)```", README, flags=re.DOTALL)
    scope: dict = {}
    exec(block, scope)
    whole = power_attention(scope["q"], scope["k"], scope["v"], scope["log_g"], degree=2)
    assert (whole[:, 600:] - scope["rest"]).norm() / whole[:, 600:].norm() < 1e-4


def test_links_and_commands_exist() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (root / target).exists(), target
    for target in re.findall(r"    make ([a-z-]+) ", README):
        assert f"\n{target}:" in (root / "Makefile").read_text()
