"""Runs on a CPU the PTX that Triton emits for the kernels of :mod:`icl_eval.kernels.power.hopper`, and finds hazards.

One program at a time, of one warpgroup (128 threads) or several, all threads of it in step, with numpy. What a thread
would do at another time on the GPU shows as a hazard (see :mod:`tests.kernels.ptx_memory`), as do registers that an
unfinished wgmma still uses, not as another result. Only the instructions of those kernels are known.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tests.kernels.ptx_memory import Array, GlobalMemory, SharedMemory

Operand = str | tuple[str, ...]
Hazards = Counter[tuple[str, str]]
"""How often each (hazard, instruction) was seen."""

WARPGROUP = 128
UNSIGNED: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {16: np.int16, 32: np.int32, 64: np.int64}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.fmin,
    "max": np.fmax,
    "rem": np.fmod,
}
UNARY: dict[str, Callable[[Array], Array]] = {"neg": np.negative, "not": np.invert, "ex2": np.exp2}
COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
MODIFIERS = {"lo", "rn", "approx", "ftz", "full"}
"""Of element-wise instructions, that change no result but in its last bit."""
WITHOUT_RESULT = {"st", "stmatrix", "cp", "bar", "bra", "fence", "ret", "wgmma"}
"""Instructions whose first operand is not a register that they write; wgmma is seen to by itself."""


class UnknownInstructionError(Exception):
    """The emulator lacks an instruction."""


@dataclass(frozen=True)
class Instruction:
    """``@predicate opcode operands``; its parts are the opcode's words, a vector operand is a tuple."""

    text: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: str | None
    negated: bool
    registers: frozenset[str]
    written: frozenset[str]


@dataclass(frozen=True)
class Code:
    """A kernel's instructions, where its labels are among them, and the threads of a program."""

    instructions: list[Instruction]
    labels: dict[str, int]
    threads: int


def parse(ptx: str) -> Code:
    """The one kernel of a PTX module."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    body = ptx[ptx.index("{", ptx.index(".entry")) + 1 :].split(".section")[0]
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        if label := re.match(r"(\$\w+):", line):
            labels[label[1]] = len(instructions)
        elif line not in ("", "{", "}") and not line.startswith("."):
            instructions += [_instruction(statement.strip()) for statement in line.split(";") if statement.strip()]
    return Code(instructions, labels, int(re.findall(r"\.reqntid (\d+)", ptx)[0]))


def _instruction(text: str) -> Instruction:
    matched = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?(\S+)\s*(.*)", text)
    assert matched, text
    negated, predicate, opcode, rest = matched.groups()
    operands: list[Operand] = []
    for vector, scalar in re.findall(r"\{([^}]*)\}|([^\s,{}\[]+|\[[^\]]*\])", rest):
        operands.append(tuple(name.strip() for name in vector.split(",")) if vector else scalar)
    parts = tuple(opcode.split("."))
    first = operands[:1] if parts[0] not in WITHOUT_RESULT else []
    written = first[0] if first and isinstance(first[0], tuple) else tuple(str(name) for name in first)
    registers = frozenset(re.findall(r"%[a-z]+\d+", text))
    return Instruction(text, parts, tuple(operands), predicate, negated == "!", registers, frozenset(written))


def bfloat16_to_float(x: Array) -> Array:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat16(x: Array) -> Array:
    """Bits of the nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def bits_of(x: Array) -> Array:
    """As registers hold it: unsigned, or a boolean."""
    return np.ascontiguousarray(x).view(UNSIGNED[8 * x.itemsize]) if x.dtype != np.bool_ else x


def numpy_type(name: str) -> Any:
    """Of a type's name in PTX; bfloat16 by its bits."""
    if name == "pred":
        return np.bool_
    if name in ("f32", "bf16", "bf16x2"):
        return {"f32": np.float32, "bf16": np.uint16, "bf16x2": np.uint32}[name]
    return (SIGNED if name[0] == "s" else UNSIGNED)[int(name[1:])]


@functools.cache
def literal(text: str, bits: int, threads: int) -> Array:
    if bits == 1:
        return np.full(threads, int(text) != 0)
    value = int(text[2:], 16) if text.startswith("0f") else int(text.rstrip("U"), 0)
    return np.full(threads, value & ((1 << bits) - 1), UNSIGNED[bits])


class Product(NamedTuple):
    """A wgmma that may not have finished: its registers, and the pairs of bytes of shared memory that it reads."""

    accumulators: tuple[str, ...]
    left: tuple[str, ...]
    pairs: Array


class Program:
    """One program: a kernel's code at a position of its grid.

    ``parameters`` are the kernel's, addresses in ``memory`` for its pointers; a register is [threads], of
    unsigned integers or booleans.
    """

    def __init__(
        self,
        code: Code,
        memory: GlobalMemory,
        parameters: Sequence[float],
        position: tuple[int, int, int],
        shared_bytes: int,
    ) -> None:
        self.code = code
        self.memory = memory
        self.parameters = parameters
        self.hazards: Hazards = Counter()
        self.shared = SharedMemory(shared_bytes, code.threads, self._report)
        memory.report = self._report
        thread = np.arange(code.threads)
        self._lane = thread % 32
        self._all = np.ones(code.threads, bool)
        self._registers = {"%tid.x": thread.astype(np.uint32), "global_smem": np.zeros(code.threads, np.uint64)}
        for axis, place in zip("xyz", position, strict=True):
            self._registers[f"%ctaid.{axis}"] = np.full(code.threads, place, np.uint32)
        self._groups: list[list[Product]] = [[]]  # of products, the last of them not yet committed
        self._accumulating: frozenset[str] = frozenset()
        self._multiplying: frozenset[str] = frozenset()
        self._unfenced: set[str] = set()

    def _report(self, hazard: str) -> None:
        self.hazards[hazard, self._instruction.text[:80]] += 1

    def run(self) -> Hazards:
        counter = 0
        with np.errstate(all="ignore"):
            while True:
                self._instruction = instruction = self.code.instructions[counter]
                counter += 1
                active = self._all
                if instruction.predicate is not None:
                    active = self._registers[instruction.predicate] ^ instruction.negated
                kind = instruction.parts[0]
                if kind == "ret":
                    self.shared.finish()
                    return self.hazards
                if kind == "bra":
                    assert active.all() or not active.any(), f"threads part at {instruction.text}"
                    if active.all():
                        counter = self.code.labels[str(instruction.operands[0])]
                    continue
                if kind != "wgmma":
                    self._check_registers(instruction)
                self._execute(instruction, active)

    def _check_registers(self, instruction: Instruction) -> None:
        """Hazard: an unfinished wgmma's accumulator is touched, or its left operand overwritten."""
        if not self._accumulating.isdisjoint(instruction.registers):
            self._report("accumulator touched in flight")
        if not self._multiplying.isdisjoint(instruction.written):
            self._report("left operand overwritten in flight")
        self._unfenced |= instruction.written

    def _read(self, operand: Operand, kind: str) -> Array:
        """A register's low bits, or a constant, as a type of PTX."""
        assert isinstance(operand, str)
        target = np.dtype(numpy_type(kind))
        bits = 1 if kind == "pred" else 8 * target.itemsize
        if operand[0] != "%" and operand not in self._registers:
            return literal(operand, bits, self.code.threads).view(target)
        value = self._registers[operand]
        return (value if value.dtype == UNSIGNED[bits] else value.astype(UNSIGNED[bits])).view(target)

    def _write(self, operand: Operand, value: Array, active: Array) -> None:
        assert isinstance(operand, str)
        value = bits_of(value)
        if not active.all():
            value = np.where(active, value, self._registers.get(operand, value))
        self._registers[operand] = value

    def _read_vector(self, operand: Operand, kind: str) -> Array:
        """Bytes [128, size] of a register or several."""
        names = (operand,) if isinstance(operand, str) else operand
        return np.stack([self._read(name, kind) for name in names], 1).view(np.uint8)

    def _write_vector(self, operand: Operand, data: Array, kind: str, active: Array) -> None:
        values = np.ascontiguousarray(data).view(numpy_type(kind))
        for name, value in zip((operand,) if isinstance(operand, str) else operand, values.T, strict=True):
            if name != "_":
                self._write(name, value, active)

    def _address(self, operand: Operand) -> Array:
        assert isinstance(operand, str)
        base, _, offset = operand[1:-1].replace(" ", "").partition("+")
        return self._registers[base].astype(np.int64) + int(offset or 0)

    def _execute(self, instruction: Instruction, active: Array) -> None:
        """Any instruction but a branch."""
        operands, parts = instruction.operands, instruction.parts
        match parts:
            case ("ld", "param", kind):
                self._load_parameter(operands, kind)
            case ("ld", space, *_, kind) if space in ("global", "shared"):
                size = np.dtype(numpy_type(kind)).itemsize * (1 if isinstance(operands[0], str) else len(operands[0]))
                memory = self.memory if space == "global" else self.shared
                self._write_vector(operands[0], memory.load(self._address(operands[1]), size, active), kind, active)
            case ("st", space, *_, kind) if space in ("global", "shared"):
                memory = self.memory if space == "global" else self.shared
                memory.store(self._address(operands[0]), self._read_vector(operands[1], kind), active)
            case ("ldmatrix" | "stmatrix", "sync", "aligned", "m8n8", count, *_):
                self._move_matrices(parts[0], int(count[1:]), "trans" in parts, operands)
            case ("mov", kind):
                self._move(operands, kind, active)
            case ("shfl", "sync", "bfly" | "idx", "b32"):
                number = int(str(operands[2]), 0)
                source = np.arange(32) ^ number if parts[2] == "bfly" else np.full(32, number)
                self._write(operands[0], self._read(operands[1], "b32").reshape(-1, 32)[:, source].ravel(), active)
            case ("bar", "sync"):
                self.shared.barrier()
            case ("fence", "proxy", "async", *_):
                self.shared.fence()
            case ("cp", "async", "commit_group"):
                self.shared.commit_copies()
            case ("cp", "async", "wait_group"):
                self.shared.wait_for_copies(int(str(operands[0])))
            case ("cp", "async", _, "shared", "global"):
                size = int(str(operands[2]), 0)
                read = active & (self._read(operands[3], "b32") > 0) if len(operands) > 3 else active
                data = self.memory.load(self._address(operands[1]), size, read)  # zero where nothing is read
                self.shared.copy(self._address(operands[0]), data, active)
            case ("wgmma", "fence", *_):
                self._unfenced.clear()
            case ("wgmma", "commit_group", *_):
                self._groups.append([])
            case ("wgmma", "wait_group", *_):
                self._wait_for_products(int(str(operands[0])))
            case ("wgmma", "mma_async", "sync", "aligned", shape, "f32", "bf16", "bf16"):
                self._multiply(operands, int(shape.removeprefix("m64n").removesuffix("k16")))
            case _:
                self._write(operands[0], self._compute(instruction), active)

    def _load_parameter(self, operands: tuple[Operand, ...], kind: str) -> None:
        value = self.parameters[int(str(operands[1]).rstrip("]").rpartition("_")[2])]
        held = np.float32(value).view(np.uint32) if isinstance(value, float) else value
        self._write(operands[0], literal(str(held), int(kind[1:]), self.code.threads), self._all)

    def _move(self, operands: tuple[Operand, ...], kind: str, active: Array) -> None:
        """Also packs several registers into one, and takes one apart."""
        target, source = operands
        bits = 1 if kind == "pred" else int(kind[1:])
        if isinstance(source, tuple):
            packed = self._read_vector(source, f"b{bits // len(source)}").view(UNSIGNED[bits])
            self._write(target, packed[:, 0], active)
        elif isinstance(target, tuple):
            self._write_vector(target, self._read_vector(source, kind), f"b{bits // len(target)}", active)
        else:
            self._write(target, self._read(source, kind), active)

    def _move_matrices(self, kind: str, count: int, transposed: bool, operands: tuple[Operand, ...]) -> None:
        """Up to four 8 × 8 matrices of 16-bit elements a warp: lane l addresses row l % 8 of matrix l // 8, and holds
        elements 2 (l % 4) and the next of row l // 4 of each, or of their transposes."""
        taking_part = np.less(self._lane, 8 * count)
        registers = operands[0] if kind == "ldmatrix" else operands[1]
        assert isinstance(registers, tuple)
        if kind == "ldmatrix":
            data = self.shared.load(self._address(operands[1]), 16, taking_part).reshape(-1, 32, 16)
            rows = np.ascontiguousarray(data[:, : 8 * count]).view(np.uint16).reshape(-1, count, 8, 8)
            rows = np.ascontiguousarray(rows.swapaxes(2, 3) if transposed else rows)
            for n, name in enumerate(registers):
                self._write(name, rows[:, n].reshape(-1, 2).view(np.uint32)[:, 0], self._all)
        else:
            values = np.stack([self._read(name, "b32").reshape(-1, 32) for name in registers], 1)
            rows = values.view(np.uint16).reshape(-1, count, 8, 8)
            rows = np.ascontiguousarray(rows.swapaxes(2, 3) if transposed else rows)
            data = np.zeros((len(rows), 32, 16), np.uint8)
            data[:, : 8 * count] = rows.reshape(-1, 8 * count, 8).view(np.uint8)
            self.shared.store(self._address(operands[0]), data.reshape(-1, 16), taking_part)

    def _multiply(self, operands: tuple[Operand, ...], columns: int) -> None:
        """Each warpgroup's [64, columns] += A [64, 16] · B [16, columns]: B, and A unless it is in registers, in shared
        memory.

        Hazards: operands in registers that were written since the last wgmma.fence; accumulators that overlap those
        of another unfinished wgmma without being the same; a left operand that is such an accumulator.
        """
        accumulators, left, right, keep, *scales = operands
        assert isinstance(accumulators, tuple)
        thread = np.arange(self.code.threads)
        group, row, column = thread // WARPGROUP, thread % WARPGROUP // 32 * 16 + self._lane // 4, self._lane % 4 * 2
        if isinstance(left, tuple):
            scale_left, scale_right, transposed = scales
            A = np.zeros((self.code.threads // WARPGROUP, 64, 16), np.float32)
            for name, (down, along) in zip(left, ((0, 0), (8, 0), (0, 8), (8, 8)), strict=True):
                values = bfloat16_to_float(self._read(name, "b32").view(np.uint16)).reshape(-1, 2)
                A[group, row + down, column + along], A[group, row + down, column + along + 1] = values.T
            in_registers, pairs = left, np.zeros(0, np.int64)
        else:
            scale_left, scale_right, left_transposed, transposed = scales
            bits, pairs = self._matrices(left, 64, left_transposed == "1")
            A, in_registers = bfloat16_to_float(bits), ()
        if (scale_left, scale_right) != ("1", "1"):
            raise UnknownInstructionError(self._instruction.text)
        bits, others = self._matrices(right, columns, transposed == "1")
        read = np.union1d(pairs, others)

        if not self._unfenced.isdisjoint((*accumulators, *in_registers)):
            self._report("wgmma's register written since wgmma.fence")
        if not self._accumulating.isdisjoint(in_registers):
            self._report("left operand is an accumulator in flight")
        for other in (product.accumulators for group in self._groups for product in group):
            if other != accumulators and not set(other).isdisjoint(accumulators):
                self._report("accumulators overlap another wgmma's")

        total = A @ bfloat16_to_float(bits).swapaxes(1, 2)
        n = np.arange(columns // 2)[:, None]  # an accumulator's number
        total = total[group, row + n % 4 // 2 * 8, n // 4 * 8 + column + n % 2]
        if self._read(keep, "pred").all():
            total = total + np.stack([self._read(name, "f32") for name in accumulators])
        self._registers.update(zip(accumulators, bits_of(total), strict=True))
        self.shared.begin_product(read)
        self._groups[-1].append(Product(accumulators, in_registers, read))
        self._note_products()

    def _matrices(self, operand: Operand, rows: int, transposed: bool) -> tuple[Array, Array]:
        """Bits [warpgroups, rows, 16] of matrices in shared memory, and all their pairs of bytes."""
        descriptors = self._read(operand, "b64").reshape(-1, WARPGROUP)
        assert (descriptors == descriptors[:, :1]).all(), f"descriptors differ in {self._instruction.text}"
        matrices = [self.shared.matrix(int(descriptor), rows, transposed) for descriptor in descriptors[:, 0]]
        return np.stack([bits for bits, _ in matrices]), np.concatenate([pairs.ravel() for _, pairs in matrices])

    def _wait_for_products(self, allowed: int) -> None:
        """Until at most ``allowed`` groups of products have not finished."""
        while len(self._groups) - 1 > allowed:
            for product in self._groups.pop(0):
                self.shared.end_product(product.pairs)
        self._note_products()

    def _note_products(self) -> None:
        products = [product for group in self._groups for product in group]
        self._accumulating = frozenset(name for product in products for name in product.accumulators)
        self._multiplying = frozenset(name for product in products for name in product.left)

    def _compute(self, instruction: Instruction) -> Array:
        """The result of an arithmetic instruction, element by element."""
        operands, parts = instruction.operands, instruction.parts
        name, kind = parts[0], parts[-1]
        match parts:
            case ("cvt", "rn", "bf16x2", "f32"):
                return np.stack([float_to_bfloat16(self._read(x, "f32")) for x in operands[:0:-1]], 1).view(np.uint32)[
                    :, 0
                ]
            case ("cvt", "rn", "bf16", "f32"):
                return float_to_bfloat16(self._read(operands[1], "f32"))
            case ("cvt", "f32", "bf16"):
                return bfloat16_to_float(self._read(operands[1], "bf16"))
            case ("cvt", target, source) if target[0] in "su" and source[0] in "su":
                return self._read(operands[1], source).astype(numpy_type(target))
            case ("add" | "mul", *_, "bf16x2"):
                x, y = (bfloat16_to_float(self._read(x, kind).view(np.uint16)) for x in operands[1:])
                return float_to_bfloat16(BINARY[name](x, y)).view(np.uint32)
            case ("selp", _):
                return np.where(self._read(operands[3], "pred"), *(self._read(x, kind) for x in operands[1:3]))
            case ("shl" | "shr", _):
                return self._shift(name, self._read(operands[1], kind), self._read(operands[2], "u32"))
            case ("mul" | "mad", "wide", _):
                x, y = (self._read(x, kind) for x in operands[1:3])
                wide = f"{kind[0]}{2 * int(kind[1:])}"
                product = x.astype(numpy_type(wide)) * y
                return product + self._read(operands[3], wide) if name == "mad" else product
            case ("mul", "hi", "u16" | "s32" | "u32"):
                x, y = (self._read(x, kind).astype(numpy_type(f"{kind[0]}64")) for x in operands[1:])
                return ((x * y) >> int(kind[1:])).astype(numpy_type(kind))
        values = [self._read(x, kind) for x in operands[1:]]
        match parts:
            case ("setp", comparison, _) if comparison in COMPARISONS:
                return COMPARISONS[comparison](*values)
            case ("mad", "lo", _):
                return values[0] * values[1] + values[2]
            case ("fma", "rn", "f32"):
                return (values[0].astype(np.float64) * values[1] + values[2]).astype(np.float32)
            case ("bfe", "u32"):
                return (values[0] >> values[1]) & ((np.uint32(1) << values[2]) - np.uint32(1))
            case ("bfe", "s32"):
                unused = 32 - values[1] - values[2]
                return (values[0] << unused) >> (32 - values[2])
            case ("prmt", "b32"):
                bytes_of_both = np.stack(values[:2], 1).view(np.uint8)
                chosen = [(values[2] >> np.uint32(shift)) & np.uint32(15) for shift in (0, 4, 8, 12)]
                if (np.array(chosen) > 7).any():  # repeats a sign
                    raise UnknownInstructionError(instruction.text)
                return np.take_along_axis(bytes_of_both, np.stack(chosen, 1), 1).view(np.uint32)[:, 0]
            case ("div", "s32" | "u32"):  # towards zero
                return (values[0] - np.fmod(*values)) // values[1]
        if MODIFIERS.issuperset(parts[1:-1]):
            if name in BINARY and len(values) == 2:
                return BINARY[name](*values)
            if name in UNARY and len(values) == 1:
                return UNARY[name](*values)
        raise UnknownInstructionError(instruction.text)

    @staticmethod
    def _shift(name: str, x: Array, amount: Array) -> Array:
        """By a type's width or more: all bits are out."""
        bits = 8 * x.itemsize
        held = np.minimum(amount, bits - 1).astype(x.dtype)
        if name == "shr" and x.dtype.kind == "i":
            return x >> held
        return np.where(amount < bits, x << held if name == "shl" else x >> held, x.dtype.type(0))
