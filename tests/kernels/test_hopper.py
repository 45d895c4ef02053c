"""Hopper's kernels as compiled for it, run by an emulator of their PTX: against float64 references, and for hazards.

Each case runs few programs of its grid. Queries, keys and values are bfloat16, and the kernels round the left operands
of their products to it, which allows errors of 2⁻⁹ an element: all but row sums are within 5e-3 of their norm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("triton")

from icl_eval.kernels.power.tiles import split_of, state_rows
from icl_eval.kernels.power.tune import candidates
from icl_eval.kernels.power.tuning import ATTENTION_ALONE, HOPPER, Launch
from tests.kernels.ptx import Code, Hazards, Program, bfloat16_to_float, float_to_bfloat16, parse
from tests.kernels.ptx_memory import Array, GlobalMemory

TOLERANCES = {"row_sum": 1e-6, "share": 1e-3, "later_share": 1e-3} | dict.fromkeys(
    ("y", "y with low", "dq", "dk", "dv", "states"), 5e-3
)
"""Of ‖got - expected‖ / ‖expected‖. Row sums are float32 of exact products; a share averages over the features."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One launch of a kernel: two sequences, heads in groups, keys and values of D features. ``initial``: there is a
    state before the first chunk, or the gradient of one after the last."""

    kernel: str
    D: int
    settings: Launch
    T: int = 400
    chunk: int = 256
    groups: int = 2
    gated: bool = True
    normalized: bool = True
    initial: bool = False

    B = 2  # sequences
    Hk = 1  # heads of keys and values

    def __str__(self) -> str:
        plain = "" if self.gated else "-ungated"
        tiles = "-".join(f"{name}{value}" for name, value in self.settings.tiles)
        return f"{self.kernel}-{self.D}{plain}-{tiles}"

    @property
    def H(self) -> int:  # noqa: N802
        return self.groups * self.Hk

    @property
    def n_chunks(self) -> int:
        return -(-self.T // self.chunk)

    @property
    def padded(self) -> int:
        return self.n_chunks * self.chunk

    @property
    def tile(self) -> int:
        """Tokens of a program of attention."""
        return self.settings.options["BK" if self.kernel == "key_value_gradient" else "BM"]

    @property
    def positions(self) -> list[tuple[int, int, int]]:
        """Of the programs to run: every tile, for one head or another; of groups of state rows, the first and last of
        each half, in the first and the last chunk."""
        options = self.settings.options
        if self.kernel != "update_state":
            heads = self.B * (self.Hk if self.kernel == "key_value_gradient" else self.H)
            return [(tile, tile % heads, 0) for tile in range(-(-self.T // self.tile))]
        low, high = split_of(self.D) // options["COUNT"], (self.D - split_of(self.D)) // (2 * options["COUNT"])
        last = (low + high) * (self.n_chunks * self.B * self.Hk - 1)
        return [(start + group, 0, 0) for start in (0, last) for group in (0, low - 1, low, low + high - 1)]


def kept(D: int) -> tuple[Array, Array]:
    """The i and the j of each row (i, j) of a state, in its order."""
    split = split_of(D)
    i, j = np.divmod(np.arange(D * D), D)
    rows = (i < split) | (j >= split)
    assert rows.sum() == state_rows(D, 2)
    return i[rows], j[rows]


class Inputs:
    """Random inputs of a case; bfloat16 by its bits. ``state`` [heads, chunks + 1, D, D, D] is symmetric, in full, and
    what no program may read of it is NaN in ``states``, its kept rows, and in ``z``. The gradient of the state after a
    chunk is the state before the one as far from the other end."""

    def __init__(self, case: Case) -> None:
        random = np.random.default_rng(0)
        D, heads = case.D, case.B * case.Hk

        def normal(*shape: int, scale: float = 1.0) -> Array:
            return float_to_bfloat16(random.standard_normal(shape) * scale)

        self.q = normal(case.B, case.T, case.H, D, scale=0.5)
        self.k = normal(case.B, case.T, case.Hk, D, scale=0.5)
        self.v = normal(case.B, case.T, case.Hk, D)
        self.do = normal(case.B, case.T, case.H, D)
        self.dn = np.zeros((case.B * case.H, case.padded), np.float32)
        self.dn[:, : case.T] = random.standard_normal((case.B * case.H, case.T))

        steps = (
            -0.07
            * random.random((heads, case.n_chunks, case.chunk))
            * (np.arange(case.padded) < case.T).reshape(case.n_chunks, case.chunk)
        )
        self.running = steps.cumsum(2).reshape(heads, case.padded)
        self.high = self.running.astype(np.float32)
        self.low = (self.running - self.high).astype(np.float32)
        self.gate = random.random((heads, case.padded)).astype(np.float32)

        state = random.standard_normal((heads, case.n_chunks + 1, D, D, D)) * 0.3
        self.state = bfloat16_to_float(float_to_bfloat16(state + state.swapaxes(2, 3))).astype(np.float64)
        z = random.standard_normal((heads, case.n_chunks + 1, D, D)) * 0.5
        self.z = (z + z.swapaxes(2, 3) + 2 * D**0.5 * np.eye(D)).astype(np.float32)
        i, j = kept(D)
        self.states = float_to_bfloat16(self.state[:, :, i, j])
        for unread in (case.n_chunks,) if case.initial else (0, case.n_chunks):
            self.states[:, unread] = float_to_bfloat16(np.array(np.nan))
            self.z[:, unread] = np.nan


class Compiled(NamedTuple):
    """A case's kernel, what it is called with, and how."""

    inputs: Inputs
    arrays: list[Array]
    numbers: list[float]
    ptx: str
    shared: int


def unwritten(*shape: int, dtype: Any = np.uint16) -> Array:
    return np.full(shape, float_to_bfloat16(np.array(np.nan)) if dtype == np.uint16 else np.nan, dtype)


def strides(*arrays: Array) -> list[int]:
    return [stride // x.itemsize for x in arrays for stride in x.strides[:3]]


def arguments(case: Case, x: Inputs) -> tuple[list[Array], list[float]]:
    """The kernel's pointers and numbers. What it writes is NaN before."""
    rows = state_rows(case.D, 2)
    if case.kernel == "update_state":
        transposed = np.zeros((case.B * case.H, case.D, case.padded), np.uint16)
        transposed[..., : case.T] = x.q.transpose(0, 2, 3, 1).reshape(case.B * case.H, case.D, case.T)
        out = unwritten(case.B * case.Hk, case.n_chunks, rows, case.D)
        sizes = [case.Hk, case.T, case.padded, case.chunk, case.n_chunks, rows * case.D, case.n_chunks]
        return [x.q, transposed, x.do, x.gate, out], [*strides(x.q, x.do), *sizes]
    numbers: list[float] = [*strides(x.q, x.k, x.v), case.H, case.T, case.padded, case.chunk, case.n_chunks]
    out, sums = unwritten(*x.q.shape), unwritten(case.B * case.H, case.padded, dtype=np.float32)
    if case.kernel == "key_value_gradient":
        numbers[9] = case.Hk
        gradients = [np.ascontiguousarray(states[:, -2::-1]) for states in (x.states, x.z)]
        shares = [unwritten(case.B * case.Hk, case.padded, dtype=np.float32) for _ in range(2)]
        results = [unwritten(*x.k.shape), unwritten(*x.v.shape), *shares]
        return [x.q, x.k, x.v, x.do, x.dn, x.high, x.low, *gradients, *results], numbers
    gates_and_states = [x.high, x.low, x.states, x.z]
    if case.kernel == "forward":
        return [x.q, x.k, x.v, *gates_and_states, out, out.copy(), sums], [*numbers, OUTPUT_SCALE]
    return [x.q, x.k, x.v, x.do, x.dn, *gates_and_states, out, sums], numbers


OUTPUT_SCALE = 0.5
"""Of outputs that are not normalised."""


def constants(case: Case) -> dict[str, int]:
    shared = {"D": case.D, "V": case.D, "SPLIT": split_of(case.D), "GROUPS": case.groups, "GATED": case.gated}
    if case.kernel != "update_state":
        end = "HAS_FINAL" if case.kernel == "key_value_gradient" else "HAS_INITIAL"
        shared |= {"ROWS": state_rows(case.D, 2), "NORMALIZED": case.normalized, end: case.initial}
    if case.kernel == "forward":
        shared["KEEP_LOW"] = True
    return shared | case.settings.options


def compile_cases(cases: Sequence[Case], cache: Path) -> dict[Case, Compiled]:
    """In a process of its own: it changes Triton's driver, and Triton reads TRITON_INTERPRET when imported."""
    inputs = [Inputs(case) for case in cases]
    called = [arguments(case, x) for case, x in zip(cases, inputs, strict=True)]
    dtypes = {np.dtype(np.uint16): "bfloat16", np.dtype(np.float32): "float32"}
    requests = [
        (f"{case.kernel}_kernel", [*(dtypes[array.dtype] for array in arrays), *numbers], constants(case))
        for case, (arrays, numbers) in zip(cases, called, strict=True)
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_hopper"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "TRITON_DISABLE_LINE_INFO": "1"},
        input=json.dumps(requests),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answers = json.loads(result.stdout)
    if answers is None:
        pytest.skip("this Triton has no Gluon for Hopper")
    failures = [f"{case}: {answer['error']}" for case, answer in zip(cases, answers, strict=True) if "error" in answer]
    assert not failures, "\n".join(failures)
    return {
        case: Compiled(x, *call, answer["ptx"], answer["shared"])
        for case, x, call, answer in zip(cases, inputs, called, answers, strict=True)
    }


def emulate(compiled: Compiled, code: Code, positions: Sequence[tuple[int, int, int]]) -> tuple[list[Array], Hazards]:
    """The kernel's arrays after some programs, and their hazards."""
    memory = GlobalMemory(compiled.arrays)
    parameters = [*memory.addresses, *compiled.numbers, 0, 0]  # Triton's own scratch memory, which these do not use
    hazards = Hazards()
    for position in positions:
        hazards += Program(code, memory, parameters, position, compiled.shared).run()
    return memory.arrays, hazards


def attention_reference(case: Case, x: Inputs, start: int, stop: int, head: int) -> dict[str, Array]:
    """Results of tokens start..stop-1, of one chunk, for a head of all sequences' heads, in float64."""
    b, h = divmod(head, case.H)
    kv = head // case.groups
    n = start // case.chunk
    seen = slice(n * case.chunk, stop)
    q, do = (bfloat16_to_float(values[b, start:stop, h]).astype(np.float64) for values in (x.q, x.do))
    k, v = (bfloat16_to_float(values[b, seen, h // case.groups]).astype(np.float64) for values in (x.k, x.v))
    dn = x.dn[head, start:stop, None] if case.normalized else np.zeros((stop - start, 1))
    scores = q @ k.T
    allowed = np.tril(np.ones_like(scores), start - seen.start)
    from_start = np.ones((stop - start, 1))
    if case.gated:
        later, earlier = x.running[kv, start:stop, None], x.running[kv, None, seen]
        allowed *= np.exp2(np.minimum(later - earlier, 0))
        from_start = np.exp2(later)
    weights = scores**2 * allowed
    y, row_sum = weights @ v, weights.sum(1, keepdims=True)
    dq = ((do @ v.T + dn) * 2 * scores * allowed) @ k
    if n > 0 or case.initial:
        by_column = np.einsum("ti,ijv->tjv", q, x.state[kv, n])
        y += np.einsum("tjv,tj->tv", by_column, q) * from_start
        dq += 2 * np.einsum("tjv,tv->tj", by_column, do) * from_start
        if case.normalized:
            qz = q @ bfloat16_to_float(float_to_bfloat16(x.z[kv, n])).astype(np.float64)
            row_sum += (qz * q).sum(1, keepdims=True) * from_start
            dq += 2 * qz * dn * from_start
    y = y / row_sum if case.normalized else y * OUTPUT_SCALE
    return {"y": y, "row_sum": row_sum[:, 0], "dq": dq, "share": (dq * q).sum(1) / 2}


def key_value_reference(case: Case, x: Inputs, start: int, stop: int, head: int) -> dict[str, Array]:
    """Results of tokens start..stop-1, of one chunk, for a head of all sequences' heads of keys, in float64."""
    b, h = divmod(head, case.Hk)
    n = start // case.chunk
    chunk_end = (n + 1) * case.chunk
    heads = slice(h * case.groups, (h + 1) * case.groups)
    k, v = (bfloat16_to_float(values[b, start:stop, h]).astype(np.float64) for values in (x.k, x.v))
    q, do = (
        bfloat16_to_float(values[b, start:chunk_end, heads]).astype(np.float64).reshape(-1, case.D)
        for values in (x.q, x.do)
    )
    t = np.arange(start, min(chunk_end, case.T)).repeat(case.groups)
    j = np.arange(start, stop)
    scores = k @ q.T
    dweights = v @ do.T
    if case.normalized:
        dweights += x.dn.reshape(case.B, case.H, -1)[b, heads, start : t[-1] + 1].T.reshape(-1)
    allowed = (t >= j[:, None]).astype(np.float64)
    until_end = np.ones((len(j), 1))
    if case.gated:
        running = x.running[head]
        allowed *= np.exp2(np.minimum(running[t] - running[j, None], 0))
        until_end = np.exp2(running[chunk_end - 1] - running[j, None])
    dk, dv, later_dk = (dweights * 2 * scores * allowed) @ q, (scores**2 * allowed) @ do, np.zeros_like(k)
    if n < case.n_chunks - 1 or case.initial:
        by_column = np.einsum("ti,ijv->tjv", k, x.state[head, case.n_chunks - 1 - n])
        dv += np.einsum("tjv,tj->tv", by_column, k) * until_end
        later_dk += 2 * np.einsum("tjv,tv->tj", by_column, v) * until_end
        if case.normalized:
            z = bfloat16_to_float(float_to_bfloat16(x.z[head, case.n_chunks - 1 - n])).astype(np.float64)
            later_dk += 2 * k @ z * until_end
        dk += later_dk
    return {"dk": dk, "dv": dv, "share": (dk * k).sum(1) / 2, "later_share": (later_dk * k).sum(1) / 2}


def state_reference(case: Case, x: Inputs, head: int, n: int) -> Array:
    """Kept rows [rows, D] of one chunk's update, in float64."""
    b, kv = divmod(head, case.Hk)
    tokens = slice(n * case.chunk, min((n + 1) * case.chunk, case.T))
    heads = slice(kv * case.groups, (kv + 1) * case.groups)
    q, do = (bfloat16_to_float(values[b, tokens, heads]).astype(np.float64) for values in (x.q, x.do))
    if case.gated:
        do = do * x.gate[head, tokens, None, None]
    i, j = kept(case.D)
    return np.einsum("tgr,tgv->rv", q[..., i] * q[..., j], do, optimize=True)


def results(case: Case, x: Inputs, arrays: list[Array]) -> Iterator[tuple[str, Array, Array]]:
    """(name, got, expected) of what the case's programs write."""
    options = case.settings.options
    for position in case.positions:
        if case.kernel == "update_state":
            count, split = options["COUNT"], split_of(case.D)
            low = split // count
            head_chunk, group = divmod(position[0], low + (case.D - split) // (2 * count))
            head, n = divmod(head_chunk, case.n_chunks)
            first, wide = (group * count, count) if group < low else (split + (group - low) * 2 * count, 2 * count)
            i = kept(case.D)[0]
            rows = (i >= first) & (i < first + wide)
            yield "states", bfloat16_to_float(arrays[-1][head, n, rows]), state_reference(case, x, head, n)[rows]
            continue
        start, head = position[0] * case.tile, position[1]
        stop = min(start + case.tile, case.T)
        if case.kernel == "key_value_gradient":
            b, h = divmod(head, case.Hk)
            *gradients, share, later_share = arrays[-4:]
            expected = key_value_reference(case, x, start, stop, head)
            for name, out in zip(("dk", "dv"), gradients, strict=True):
                yield name, bfloat16_to_float(out[b, start:stop, h]), expected[name]
            if case.gated:
                for name, sums in (("share", share), ("later_share", later_share)):
                    yield name, sums[head, start:stop], expected[name]
            continue
        expected = attention_reference(case, x, start, stop, head)
        b, h = divmod(head, case.H)
        if case.kernel == "forward":
            out, low_part, sums = arrays[-3:]
            y = bfloat16_to_float(out[b, start:stop, h])
            yield "y", y, expected["y"]
            yield "y with low", y + bfloat16_to_float(low_part[b, start:stop, h]), expected["y"]
            if case.normalized:
                yield "row_sum", sums[head, start:stop], expected["row_sum"]
        else:
            out, sums = arrays[-2:]
            yield "dq", bfloat16_to_float(out[b, start:stop, h]), expected["dq"]
            if case.gated:
                yield "share", sums[head, start:stop], expected["share"]


def check(case: Case, compiled: Compiled) -> None:
    arrays, hazards = emulate(compiled, parse(compiled.ptx), case.positions)
    assert not hazards
    for name, got, expected in results(case, compiled.inputs, arrays):
        assert np.linalg.norm(got - expected) <= TOLERANCES[name] * np.linalg.norm(expected), name


def case_of(kernel: str, D: int, settings: Launch, **changes: Any) -> Case:
    """With the smallest shape that has a chunk without a state, one with, several tiles of each and a short last."""
    if kernel == "update_state":
        changes = {"T": 300, "chunk": 128, **changes}
    return Case(kernel=kernel, D=D, settings=settings, **changes)


CASES = [
    *(case_of(kernel, D, settings) for (kernel, D), settings in HOPPER.items()),
    *(case_of(kernel, D, settings, T=200) for (kernel, D), settings in ATTENTION_ALONE.items()),
]
PLAIN_CASES = [
    case_of(kernel, D, HOPPER[kernel, D], gated=False, normalized=False, initial=True, groups=1, T=200, chunk=128)
    for kernel, D in (("forward", 32), ("query_gradient", 32), ("key_value_gradient", 64))
]
CANDIDATES = [
    case_of(kernel, D, settings) for kernel, D in HOPPER for settings in candidates(kernel, D, on_hopper=True)
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Compiled]:
    return compile_cases(CASES + PLAIN_CASES, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def compiled_candidates(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Compiled]:
    return compile_cases(CANDIDATES, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("case", CASES + PLAIN_CASES, ids=str)
def test_a_kernel_gives_the_references_results_without_hazards(case: Case, compiled: dict[Case, Compiled]) -> None:
    check(case, compiled[case])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # to compile them all
@pytest.mark.parametrize("case", CANDIDATES, ids=str)
def test_every_setting_that_is_tried_works(case: Case, compiled_candidates: dict[Case, Compiled]) -> None:
    check(case, compiled_candidates[case])


def without(instruction: str) -> Callable[[str], str]:
    return lambda ptx: "\n".join(line for line in ptx.splitlines() if instruction not in line)


def without_barriers_after_copies(ptx: str) -> str:
    lines: list[str] = []
    waited = False
    for line in ptx.splitlines():
        if waited and "bar.sync" in line:
            waited = False
            continue
        waited |= "cp.async.wait_group" in line
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("damage", "hazard"),
    [
        pytest.param(without("cp.async.wait_group \t0;"), "copy in flight at the end", id="last wait for copies"),
        pytest.param(without_barriers_after_copies, "wgmma reads a write without a barrier", id="barriers"),
        pytest.param(without("fence.proxy.async"), "wgmma reads a write without a fence", id="fences"),
        pytest.param(without("wgmma.wait_group"), "accumulator touched in flight", id="waits for products"),
        pytest.param(without("wgmma.fence"), "wgmma's register written since wgmma.fence", id="fences of registers"),
    ],
)
def test_a_missing_synchronisation_is_found(
    damage: Callable[[str], str], hazard: str, compiled: dict[Case, Compiled]
) -> None:
    case = CASES[0]
    assert case.kernel == "update_state"
    intact = compiled[case]
    damaged = damage(intact.ptx)
    assert damaged != intact.ptx
    _, hazards = emulate(intact, parse(damaged), case.positions[:1])
    assert hazard in {name for name, _ in hazards}
