"""``icl-eval mixer check``: is a mixer causal, is its state enough, and does it cost what it declares?"""

from collections.abc import Iterator
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from icl_eval.commands.findings import Finding, passed, print_finding
from icl_eval.config import lookup
from icl_eval.models import MIXERS, MixerConfig, ModelConfig
from icl_eval.models.mixers import SequenceMixer
from icl_eval.presets import defaults_in, load_preset

app = typer.Typer(help="Check mixers.", no_args_is_help=True, add_completion=False)
LENGTH = 97
TOLERANCE = 1e-8
"""Of relative differences in float64."""


@app.callback()
def mixer() -> None:
    """Check mixers."""


@app.command()
def check(
    mixer: Annotated[str, typer.Argument(metavar="MIXER", help="A mixer's name, or a Python file of yours.")],
) -> None:
    """Verify causality, that the state may be cut anywhere, decoding, and the declared costs.

    The status is 1 if a check fails.
    """
    console = Console()
    if mixer.endswith(".py"):
        mixers = defaults_in(mixer, MixerConfig)  # type: ignore[type-abstract]
        mixers = mixers or list(dict.fromkeys(m for arm in load_preset(mixer).arms for m in arm.model.mixers))
    else:
        mixers = [lookup(MIXERS, mixer, "mixer")()]
    failed = False
    for each in mixers:
        console.print(f"[bold]{each.name}[/]: {each}", highlight=False, soft_wrap=True)
        for finding in check_mixer(each):
            print_finding(console, finding)
            failed |= finding.verdict == "FAIL"
    if failed:
        raise typer.Exit(1)


def check_mixer(config: MixerConfig) -> Iterator[Finding]:
    """All checks in turn, in float64 on random inputs."""
    whole_config = ModelConfig(vocab_size=32, num_layers=1, mixers=(config,))
    (config,) = whole_config.layers  # as it stands in a first layer
    model = whole_config.build().double()
    mixer = model.layers[0].get_submodule("mixer")
    assert isinstance(mixer, SequenceMixer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mixer.parameters():  # some start at zero, and would hide what they multiply
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator), alpha=0.1)
    x = torch.randn(2, LENGTH, config.width, dtype=torch.float64, generator=generator)
    whole = mixer(x)[0].detach()
    shape = passed("shape", whole.shape == x.shape, f"{list(whole.shape)} for {list(x.shape)}")
    yield shape
    if shape.verdict == "FAIL":
        return
    yield _causality(mixer, x, whole)
    yield _rows(mixer, x, whole)
    yield _state(mixer, x, whole)
    yield _decoding(mixer, x, whole)
    yield _gradients(mixer, x)
    yield _declared_state(config, mixer, x)
    yield _declared_flops(config, mixer, x)


def _difference(y: Tensor, expected: Tensor) -> float:
    """Relative to the largest expected output."""
    return ((y - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


@torch.no_grad()
def _causality(mixer: SequenceMixer, x: Tensor, whole: Tensor) -> Finding:
    cuts = (1, 16, 32, LENGTH - 1)
    worst, moved = 0.0, True
    for cut in cuts:
        other = torch.cat([x[:, :cut], 2 + x[:, cut:].flip(1)], dim=1)
        y = mixer(other)[0]
        worst = max(worst, _difference(y[:, :cut], whole[:, :cut]))
        moved &= _difference(y[:, cut:], whole[:, cut:]) > TOLERANCE
    if not moved:
        return Finding("causality", "FAIL", "outputs do not depend on their own inputs")
    detail = f"outputs before a change of inputs move by {worst:.1e}"
    return passed("causality", worst < TOLERANCE, detail)


@torch.no_grad()
def _rows(mixer: SequenceMixer, x: Tensor, whole: Tensor) -> Finding:
    difference = _difference(mixer(x[:1])[0], whole[:1])
    return passed(
        "rows", difference < TOLERANCE, f"a sequence alone differs by {difference:.1e} from itself in a batch"
    )


@torch.no_grad()
def _state(mixer: SequenceMixer, x: Tensor, whole: Tensor) -> Finding:
    worst, at = 0.0, 0
    for cut in range(1, LENGTH):
        first, state = mixer(x[:, :cut])
        second, _ = mixer(x[:, cut:], state)
        difference = _difference(torch.cat([first, second], dim=1), whole)
        worst, at = max((worst, at), (difference, cut))
    return passed("state", worst < TOLERANCE, f"cut anywhere, outputs differ by {worst:.1e} at most (at {at})")


@torch.no_grad()
def _decoding(mixer: SequenceMixer, x: Tensor, whole: Tensor) -> Finding:
    outputs, state = [], None
    for t in range(LENGTH):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    difference = _difference(torch.stack(outputs, dim=1), whole)
    return passed("decoding", difference < TOLERANCE, f"step differs by {difference:.1e} from the forward pass")


def _gradients(mixer: SequenceMixer, x: Tensor) -> Finding:
    mixer.zero_grad()
    mixer(x, return_state=False)[0].square().mean().backward()
    missing = [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]
    infinite = [name for name, p in mixer.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if infinite:
        return Finding("gradients", "FAIL", f"not finite: {', '.join(infinite)}")
    detail = f"none reaches {', '.join(missing)}" if missing else "every parameter has one"
    return passed("gradients", not missing, detail, otherwise="note")


@torch.no_grad()
def _declared_state(config: MixerConfig, mixer: SequenceMixer, x: Tensor) -> Finding:
    wrong = []
    for context in (1, 15, 64, LENGTH):
        state = mixer(x[:1, :context])[1]
        held = sum(leaf.numel() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
        declared = config.state_size(context)
        if held != declared.stored:
            wrong.append(f"holds {held:,} elements after {context} tokens, declares {declared.stored:,}")
    size = config.state_size(LENGTH)
    detail = f"{size.stored:,} elements after {LENGTH} tokens, {size.mathematical:,} by definition"
    return passed("declared state", not wrong, "; ".join(wrong) or detail)


@torch.no_grad()
def _declared_flops(config: MixerConfig, mixer: SequenceMixer, x: Tensor) -> Finding:
    """The counter sees matrix products alone, masked pairs included, and no kernels of one's own."""
    x = x[:1, : LENGTH - 1]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mixer(x, return_state=False)
    executed = counter.get_total_flops() / x.shape[1]
    declared = config.flops_per_token(x.shape[1], causal=False).total + config.masked_flops(x.shape[1])
    detail = f"{executed:,.0f} executed a token, {declared:,.0f} declared"
    if abs(executed - declared) <= 0.01 * declared:
        return Finding("declared FLOPs", "ok", detail)
    ratio = executed / declared
    near = 0.3 < ratio < 3
    explained = "masked pairs not declared, or products that the counter cannot see" if near else "far apart"
    return Finding("declared FLOPs", "note" if near else "FAIL", f"{detail}: {explained}")
