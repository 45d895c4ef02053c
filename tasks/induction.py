"""Induction: triggers hidden in noise, each to be followed the second time by what followed it the first time."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import RecallTask
from icl_eval.tasks.draws import ascending, distinct


@dataclass(frozen=True, kw_only=True)
class Induction(RecallTask):
    """Induction heads (Olsson et al., 2022; as a task, Fu et al., "H3", 2023), with several triggers of any length.

    A trigger is an n-gram of trigger tokens, which occur nowhere else; all n-grams of a sequence are distinct. It
    stands twice among uniform symbols, each time followed by the same symbol, which is to be predicted the second
    time. With ``vocab_size=8`` (symbols 0-3, trigger tokens 4-7), ``num_triggers=1``, ``trigger_length=2`` and
    ``seq_len=11``, a sequence is

        tokens    2  0  3  5  4  1  0  3  1  5  4
        targets   .  .  .  .  .  .  .  .  .  .  1
        scored    0  0  0  0  0  0  0  0  0  0  1
        position                                6   (tokens from trigger to trigger)

    The ideal loss is 0.

    Attributes:
        num_triggers: what the state has to hold, a symbol each; 1 is the classical task.
        trigger_length: n, tokens of a trigger; from 2 on its tokens tell only together.
        vocab_size: symbols are the lower half, trigger tokens the upper.
    """

    name: ClassVar[str] = "induction"
    version: ClassVar[int] = 1

    vocab_size: int = 64
    num_triggers: int = 8
    trigger_length: int = 1

    def __post_init__(self) -> None:
        self.require(self.vocab_size >= 4 and self.vocab_size % 2 == 0, "vocab_size", "an even number of at least 4")
        self.require(1 <= self.trigger_length <= 8, "trigger_length", "in [1, 8]")
        most = (self.vocab_size // 2) ** self.trigger_length
        self.require(1 <= self.num_triggers <= most, "num_triggers", f"in [1, {most}]: triggers are distinct")
        need = 2 * self.num_triggers * (self.trigger_length + 1)
        self.require(
            self.seq_len >= need, "seq_len", f"at least {need}: each trigger and the symbol after it stand twice"
        )

    @property
    def num_tokens(self) -> int:
        return self.vocab_size

    @property
    def position_label(self) -> str:
        return "distance from trigger to trigger (tokens)"

    @property
    def state_bits(self) -> float:
        return self.num_triggers * float(np.log2(self.vocab_size / 2))

    def chance(self) -> float:
        return float(np.log(self.vocab_size / 2))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        half, N, n = self.vocab_size // 2, self.num_triggers, self.trigger_length
        row = np.arange(rows)[:, None]
        trigger = distinct(rng, rows, half**n, N)[:, :, None] // half ** np.arange(n) % half + half
        symbol = rng.integers(0, half, (rows, N, 1))
        segment = np.concatenate([trigger, symbol], axis=2)

        spare = self.seq_len + 1 - 2 * N * (n + 1)
        slot = ascending(rng, rows, 2 * N + spare, 2 * N)
        start = slot + n * np.arange(2 * N)
        pair = np.sort(distinct(rng, rows, 2 * N, 2 * N).reshape(rows, N, 2), axis=2)
        first, second = start[row, pair[:, :, 0]], start[row, pair[:, :, 1]]

        whole = rng.integers(0, half, (rows, self.seq_len + 1))
        for begin in (first, second):
            whole[row[:, :, None], begin[:, :, None] + np.arange(n + 1)] = segment
        scored, position = np.zeros((rows, self.seq_len), bool), np.zeros((rows, self.seq_len), np.int64)
        scored[row, second + n - 1] = True
        position[row, second + n - 1] = second - first
        return {"tokens": whole[:, :-1].copy(), "targets": whole[:, 1:].copy(), "scored": scored, "position": position}
