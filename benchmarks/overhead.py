"""What the harness costs beside plain loops: seconds of a training step, in one process and one run.

    python benchmarks/overhead.py --device cpu --size nano --context 512 --batch 4 --vocab 256 --out results/overhead
    python benchmarks/overhead.py --device cuda --size small --context 4096 --batch 8 --vocab 50304 --compile --out DIR

``harness`` is ``icl_eval.run``: data made meanwhile, accelerate, clipping, skipped gradients, logging, locks and
checkpoints. ``plain loop`` trains the same model with AdamW and clipping on batches made beforehand. ``plain GPT`` is
the shortest GPT there is in the same loop: learned positions, SDPA, all logits at once; compiled as a whole with
``--compile``, which compiles the layers and losses of the others. Rounds alternate; a step's time is the median over
all of them but the first ten steps of each, with 20 % and 80 % quantiles. On a GPU the harness' seconds are of ten
steps at a time.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.models import MixerConfig, Power, Softmax
from icl_eval.models.sizes import SIZES, Size, model_config
from icl_eval.run import environment, run_experiment
from icl_eval.run_folder import load_runs
from icl_eval.tasks import MQAR

WARMUP = 10
"""Steps of every round that are not counted: compilation, and caches that fill."""
QUANTILES = torch.tensor([0.5, 0.2, 0.8])


class PlainGPT(nn.Module):
    """Tokens [B, T] and targets [B, T] to the mean loss (nats)."""

    def __init__(self, size: Size, vocab_size: int, context: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, size.width), nn.Embedding(context, size.width)
        self.layers = nn.ModuleList(PlainLayer(size) for _ in range(size.num_layers))
        self.norm = nn.LayerNorm(size.width, bias=False)
        self.head = nn.Linear(size.width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class PlainLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, size: Size):
        super().__init__()
        self.num_heads = size.num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(size.width, bias=False) for _ in range(2))
        self.qkv, self.out = (nn.Linear(size.width, n * size.width, bias=False) for n in (3, 1))
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def time_loop(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: list, device: str) -> list[float]:
    """Seconds of each step of a plain loop over tokens and targets."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for tokens, targets in batches:
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss(tokens.to(device), targets.to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP:]


def time_harness(arm: Arm, device: str) -> list[float]:
    """Seconds of each step of a run, from its metrics, which are written every ten steps."""
    experiment = Experiment(
        name="overhead", question="?", arms=(arm,), eval_sequences=4, eval_batch_size=4, snapshots=1
    )
    with tempfile.TemporaryDirectory() as folder:
        (run,) = load_runs(run_experiment(experiment, folder, device=device))
        passed = run.metrics[["step", "seconds"]].diff().dropna()
    return (passed["seconds"] / passed["step"]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--size", choices=list(SIZES), required=True)
    for name, default in {"context": 512, "batch": 4, "vocab": 256, "steps": 30, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    task = MQAR(seq_len=a.context, vocab_size=a.vocab, num_pairs=16)
    training = Training(batch_size=a.batch, learning_rate=1e-4, final_learning_rate=1e-5, compile=a.compile)

    def arm(mixer: MixerConfig) -> Arm:
        model = model_config(a.size, mixer, vocab_size=task.num_tokens, context=a.context, tied_embeddings=True)
        budget = Budget(tokens=a.steps * a.batch * a.context)
        return Arm(name=mixer.name, task=task, model=model, training=training, budget=budget)

    source = task.build(0)
    made = (source.batch("train", index, a.batch) for index in range(a.steps))
    batches = [(batch.tokens, batch.targets) for batch in made]

    def plain_loop(mixer: MixerConfig) -> list[float]:
        model = arm(mixer).model.build(0).to(a.device)
        if a.compile:
            model.compile_parts()
        weights = torch.full((a.batch, a.context), 1 / (a.batch * a.context), device=a.device)
        return time_loop(model, lambda tokens, targets: model.loss(tokens, targets, weights), batches, a.device)

    def plain_gpt() -> list[float]:
        model = PlainGPT(SIZES[a.size], task.num_tokens, a.context).to(a.device)
        return time_loop(model, torch.compile(model) if a.compile else model, batches, a.device)

    loops: dict[str, Callable[[], list[float]]] = {"plain GPT": plain_gpt}
    for mixer in (Softmax(), Power()):
        loops[f"{mixer.name}, plain loop"] = lambda mixer=mixer: plain_loop(mixer)
        loops[f"{mixer.name}, harness"] = lambda mixer=mixer: time_harness(arm(mixer), a.device)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(a.rounds):
        for name, loop in loops.items():
            seconds[name] += loop()
            torch.compiler.reset()
    rows = {name: torch.tensor(values).quantile(QUANTILES).tolist() for name, values in seconds.items()}
    for name, (median, low, high) in rows.items():
        against = {"plain GPT": rows["plain GPT"][0], "plain loop": rows.get(name.replace("harness", "plain loop"))[0]}
        shares = ", ".join(f"{median / other:.3f}x {rival}" for rival, other in against.items() if other)
        print(f"{name:20} {median * 1e3:9.2f} ms [{low * 1e3:.2f}, {high * 1e3:.2f}]  {shares}")
    a.out.mkdir(parents=True, exist_ok=True)
    about = environment(torch.device(a.device)) | {"command": sys.argv, "seconds_median_q20_q80": rows}
    (a.out / f"overhead_{a.device}.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
