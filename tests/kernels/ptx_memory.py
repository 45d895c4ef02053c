"""The memory that emulated PTX sees, and the hazards of using it: what would be a race or a fault on the GPU.

Addresses are [threads], one for each thread of a program; ``active`` [threads] says which take part. Data are bytes,
[threads, size]. A hazard is reported by name, and the access then goes on, so that one run lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Report = Callable[[str], None]

GAP = 8192
"""Bytes between two arrays in global memory that belong to neither: an access past an array's end is seen."""


class GlobalMemory:
    """Arrays at addresses of their own; ``arrays`` are views of it, in which results appear.

    Hazards: a misaligned access, and one to bytes that belong to no array.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.report: Report = print
        self.addresses: list[int] = []
        end = GAP
        for array in arrays:
            self.addresses.append(end)
            end += -(-array.nbytes // 256) * 256 + GAP
        self._bytes = np.zeros(end, np.uint8)
        self._owned = np.zeros(end, bool)
        self.arrays: list[Array] = []
        for array, address in zip(arrays, self.addresses, strict=True):
            place = slice(address, address + array.nbytes)
            self._owned[place] = True
            self.arrays.append(self._bytes[place].view(array.dtype).reshape(array.shape))
            self.arrays[-1][...] = array

    def load(self, addresses: Array, size: int, active: Array) -> Array:
        place, active = self._place(addresses, size, active)
        data = np.zeros((len(addresses), size), np.uint8)
        data[active] = self._bytes[place]
        return data

    def store(self, addresses: Array, data: Array, active: Array) -> None:
        place, active = self._place(addresses, data.shape[1], active)
        self._bytes[place] = data[active]

    def _place(self, addresses: Array, size: int, active: Array) -> tuple[Array, Array]:
        """Indices [active threads, size] of the bytes, and the threads whose bytes are an array's."""
        if (addresses[active] % size).any():
            self.report("misaligned global access")
        place = addresses[:, None] + np.arange(size)
        inside = ((place >= 0) & (place < len(self._bytes))).all(1)
        inside &= self._owned[np.where(inside[:, None], place, 0)].all(1)
        if (active & ~inside).any():
            self.report("global access out of bounds")
        active = active & inside
        return place[active], active


class SharedMemory:
    """Shared memory of one program, with a record of who touched each of its pairs of bytes, and when.

    Barriers divide time into epochs. Hazards: two warps touch a pair in one epoch, one of them writing; a pair is
    touched while an asynchronous copy to it is in flight, that is before its own thread has waited for it; it is
    written while an unfinished wgmma reads it; a wgmma, which goes through the asynchronous proxy, reads what no
    ``fence.proxy.async`` followed; a read of what nothing has written; a misaligned or out-of-bounds access.
    """

    def __init__(self, size: int, threads: int, report: Report) -> None:
        self.report = report
        self.size = size
        self._bytes = np.full(size + size % 2, 0xFF, np.uint8)
        pairs = len(self._bytes) // 2
        self._epoch = 0
        self._written = np.full(pairs, -1)
        self._writer = np.zeros(pairs, np.int64)
        self._warp = np.arange(threads) // 32
        self._read = np.full((threads // 32, pairs), -1)
        self._copies = 0
        self._copy = np.full(pairs, -1)
        self._products = np.zeros(pairs, np.int64)
        self._unfenced = np.zeros(pairs, bool)
        self._initialised = np.zeros(pairs, bool)

    def load(self, addresses: Array, size: int, active: Array) -> Array:
        pairs, warps, active = self._pairs(addresses, size, active)
        if (self._copy[pairs] >= 0).any():
            self.report("read of a copy in flight")
        if ((self._written[pairs] == self._epoch) & (self._writer[pairs] != warps)).any():
            self.report("read of another warp's write without a barrier")
        if not self._initialised[pairs].all():
            self.report("read of uninitialised shared memory")
        self._read[np.broadcast_to(warps, pairs.shape), pairs] = self._epoch
        data = np.zeros((len(addresses), size), np.uint8)
        data[active] = self._bytes[addresses[active, None] + np.arange(size)]
        return data

    def store(self, addresses: Array, data: Array, active: Array) -> None:
        pairs, warps = self._write(addresses, data, active)
        self._written[pairs] = self._epoch
        self._writer[pairs] = warps

    def copy(self, addresses: Array, data: Array, active: Array) -> None:
        """An asynchronous copy, of the group that the next :meth:`commit_copies` ends."""
        pairs, warps = self._write(addresses, data, active)
        if np.unique(pairs).size != pairs.size:
            self.report("two copies to one place")
        self._copy[pairs] = self._copies
        self._writer[pairs] = warps

    def commit_copies(self) -> None:
        self._copies += 1

    def wait_for_copies(self, allowed: int) -> None:
        """Until at most ``allowed`` groups are in flight: copied elements count as written, by their thread, now."""
        arrived = (self._copy >= 0) & (self._copy < self._copies - allowed)
        self._written[arrived] = self._epoch
        self._copy[arrived] = -1

    def finish(self) -> None:
        if (self._copy >= 0).any():
            self.report("copy in flight at the end")

    def barrier(self) -> None:
        self._epoch += 1

    def fence(self) -> None:
        self._unfenced[self._copy < 0] = False

    def matrix(self, descriptor: int, rows: int, transposed: bool) -> tuple[Array, Array]:
        """A wgmma's operand as bfloat16 bits [rows, 16], and its pairs of bytes, which it reads until it has finished.

        Rows are those of A or columns of B. They lie in swizzled lines of 128, 64 or 32 bytes: each line a row, or
        if transposed each a k with as many rows as fit.
        """
        start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
        line, swizzle = {1: (128, 7), 2: (64, 3), 3: (32, 1)}[descriptor >> 62]
        row, k = np.arange(rows)[:, None], np.arange(16)
        if transposed:
            width = line // 2
            place = start + row // width * leading + k // 8 * stride + k % 8 * line + row % width * 2
        else:
            place = start + row // 8 * stride + row % 8 * line + k * 2
        place ^= ((place >> 7) & swizzle) << 4
        if (place >= self.size).any():
            self.report("wgmma reads shared memory out of bounds")
        pairs = np.minimum(place, self.size - 1) // 2
        if (self._copy[pairs] >= 0).any():
            self.report("wgmma reads a copy in flight")
        if (self._written[pairs] == self._epoch).any():
            self.report("wgmma reads a write without a barrier")
        if self._unfenced[pairs].any():
            self.report("wgmma reads a write without a fence")
        if not self._initialised[pairs].all():
            self.report("wgmma reads uninitialised shared memory")
        return self._bytes.view(np.uint16)[pairs], pairs

    def begin_product(self, pairs: Array) -> None:
        self._products[pairs] += 1

    def end_product(self, pairs: Array) -> None:
        """Of a wgmma that has finished: other warps may not have seen that before the next barrier."""
        self._products[pairs] -= 1
        self._read[:, pairs] = self._epoch

    def _write(self, addresses: Array, data: Array, active: Array) -> tuple[Array, Array]:
        pairs, warps, active = self._pairs(addresses, data.shape[1], active)
        if (self._copy[pairs] >= 0).any():
            self.report("write over a copy in flight")
        if ((self._written[pairs] == self._epoch) & (self._writer[pairs] != warps)).any():
            self.report("write over another warp's write without a barrier")
        if any(((read[pairs] == self._epoch) & (warps != warp)).any() for warp, read in enumerate(self._read)):
            self.report("write over what another warp reads without a barrier")
        if (self._products[pairs] > 0).any():
            self.report("write under an unfinished wgmma")
        self._bytes[addresses[active, None] + np.arange(data.shape[1])] = data[active]
        self._initialised[pairs] = True
        self._unfenced[pairs] = True
        return pairs, warps

    def _pairs(self, addresses: Array, size: int, active: Array) -> tuple[Array, Array, Array]:
        """Pairs of bytes [active, size / 2], the threads' warps [active, 1], and which threads are in bounds."""
        if (addresses[active] % size).any():
            self.report("misaligned shared access")
        inside = (addresses >= 0) & (addresses + size <= self.size)
        if (active & ~inside).any():
            self.report("shared access out of bounds")
        active = active & inside
        return (addresses[active, None] + np.arange(0, size, 2)) // 2, self._warp[active, None], active
