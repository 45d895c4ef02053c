"""``icl-eval doctor``: do the kernels work here, which backend is used, and which extras are installed?"""

from importlib.metadata import metadata, version
from importlib.util import find_spec

import torch
import typer
from rich.console import Console

from icl_eval.commands.findings import Finding, passed, print_finding
from icl_eval.kernels import power_attention
from icl_eval.kernels.doctor import doctor as check_kernels

app = typer.Typer(add_completion=False)
DEGREES = {1: "none", 2: "row_sum", 3: "none", 4: "row_sum"}
TOLERANCE = 1e-9
"""Of relative differences in float64."""
EXTRAS = {
    "fla": ("fla", "fast rwkv7, gla, deltanet and gated_deltanet on a GPU"),
    "hf": ("transformers", "icl-eval measure of Hugging Face models"),
    "longcrawl64": ("zarr", "the task longcrawl64"),
    "ray": ("ray", "--launcher ray"),
    "ruler": ("wonderwords", "RULER's tasks in lm-eval"),
    "tracking": ("tensorboard", "--tracker tensorboard"),
}


@app.command()
def doctor() -> None:
    """Check every kernel against its reference on this machine, and say which backend will be used and why."""
    console = Console()
    sound = check_kernels()
    if not torch.cuda.is_available():
        print(f"plain torch on the CPU, {torch.get_num_threads()} threads, against the quadratic reference:")
        for degree in DEGREES:
            finding = check_chunked(degree)
            sound &= finding.verdict == "ok"
            print_finding(console, finding)
    print(f"extras of icl-eval {version('icl-eval')}:")
    for extra in metadata("icl-eval").get_all("Provides-Extra") or ():
        if extra in EXTRAS:
            module, purpose = EXTRAS[extra]
            there = find_spec(module) is not None
            detail = f"installed, for {purpose}" if there else f"pip install 'icl-eval\\[{extra}]' for {purpose}"
            print_finding(console, passed(extra, there, detail, otherwise="note"))
    if not sound:
        raise typer.Exit(1)


def check_chunked(degree: int) -> Finding:
    """Output and gradients of the chunked form against the quadratic reference, in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dy = torch.randn(4, 1, 200, 2, 16, generator=generator, dtype=torch.float64)
    log_g = torch.nn.functional.logsigmoid(torch.randn(1, 200, 2, generator=generator, dtype=torch.float64) + 4)
    results = []
    for backend in ("chunked", "reference"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, log_g)]
        y = power_attention(*leaves, degree=degree, normalization=DEGREES[degree], chunk_size=64, backend=backend)
        assert isinstance(y, torch.Tensor)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(*results, strict=True))
    return passed(f"degree {degree}", error <= TOLERANCE, f"outputs and gradients differ by {error:.1e} in float64")
