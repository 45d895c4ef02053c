"""``icl-eval mixer check`` finds what is wrong with a mixer, and nothing where nothing is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from icl_eval.commands.mixer import check_mixer
from icl_eval.models import MIXERS, Flops, MixerConfig, StateSize
from icl_eval.models.mixers import Mixer
from tests.icl_eval.test_cli import icl_eval


class Total(NamedTuple):
    values: Tensor
    length: int


@dataclass(frozen=True, kw_only=True)
class Summing(MixerConfig):
    """Sums of all values so far, and a place for a fault."""

    name: ClassVar[str] = "summing"
    rotary_base: float | None = None
    fault: str = ""
    elements: int = field(default=64)
    flops: float = 32_768.0

    def build(self) -> "SummingMixer":
        return SummingMixer(self)

    def state_size(self, context: int) -> StateSize:
        return StateSize(self.elements, self.elements)

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        return Flops(self.flops, 0.0)


class SummingMixer(Mixer):
    config: Summing

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Any, return_state: bool) -> tuple[Tensor, Any]:
        fault = self.config.fault
        start = torch.zeros_like(v[:, 0]) if state is None or fault == "forgets" else state.values
        sums = v.cumsum(1) + start[:, None]
        if fault == "looks ahead":
            sums = sums + v.flip(1).cumsum(1).flip(1)
        if fault == "mixes rows":
            sums = sums + v.mean(0, keepdim=True)
        y = torch.einsum("bthd,bthd->bth", q, k)[..., None] * 1e-3 + sums
        if fault == "deaf":
            y = torch.ones_like(y)
        if fault == "decodes otherwise" and v.shape[1] == 1:
            y = 1.01 * y
        return y, Total(sums[:, -1], 0) if return_state else None


FAULTS: dict[str, tuple[dict, str, str]] = {
    "looks ahead": ({"fault": "looks ahead"}, "causality", "outputs before a change"),
    "mixes rows": ({"fault": "mixes rows"}, "rows", "a sequence alone differs"),
    "forgets": ({"fault": "forgets"}, "state", "cut anywhere"),
    "deaf": ({"fault": "deaf"}, "causality", "do not depend"),
    "decodes otherwise": ({"fault": "decodes otherwise"}, "decoding", "step differs"),
    "declares less state": ({"elements": 32}, "declared state", "holds 64 elements after 1 tokens, declares 32"),
    "declares few FLOPs": ({"flops": 100.0}, "declared FLOPs", "far apart"),
}


def verdicts(config: MixerConfig) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.verdict, finding.detail) for finding in check_mixer(config)}


@pytest.mark.parametrize("config", [Summing(), *(MIXERS[n]() for n in ("softmax", "window", "linear", "power"))])
def test_healthy_mixers_pass(config: MixerConfig) -> None:
    found = verdicts(config)
    assert len(found) == 8
    assert not [name for name, (verdict, _) in found.items() if verdict == "FAIL"], found


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str) -> None:
    fields, check, message = FAULTS[fault]
    verdict, detail = verdicts(Summing(**fields))[check]
    assert verdict == "FAIL"
    assert message in detail


def test_the_command_answers_mistakes_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, _, errors = icl_eval(monkeypatch, capsys, "mixer", "check", "softmx")
    assert code == 2
    assert "unknown mixer 'softmx'; did you mean 'softmax'" in errors


def test_a_file_without_an_experiment_is_checked_with_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "without_experiment.py"
    file.write_text(
        "from typing import ClassVar\nfrom icl_eval.models import Softmax\n\n\n"
        'class OwnSoftmax(Softmax):\n    name: ClassVar[str] = "own_softmax"\n'
    )
    code, out, _ = icl_eval(monkeypatch, capsys, "mixer", "check", file)
    assert code == 0
    assert out.count("own_softmax: OwnSoftmax(") == 1
