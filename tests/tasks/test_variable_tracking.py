"""Variable tracking: chains followed in the text, every depth and chain asked for, purity."""

import re
from collections import Counter

import pytest

from icl_eval.tasks import VariableTracking
from icl_eval.tasks.variable_tracking import VOCABULARY
from tests.tasks.generated import assert_at_chance, assert_certain, assert_pure, digest

ASSIGNMENT = re.compile(r"VAR (\w\d) = (?:VAR )?(\w\d|\d\d)$", re.MULTILINE)
EXAMPLE = """VAR K4 = 47
VAR Z9 = 12
The old fisher found the pale kite.
VAR B0 = VAR K4
VAR A7 = VAR Z9
VAR B0 is: """


def followed(text: str) -> tuple[str, int]:
    """Value of the variable in the last line and assignments on the way; an unknown variable has the first value."""
    holds = dict(ASSIGNMENT.findall(text))
    value, steps = text.rsplit("\n", 1)[-1].removeprefix("VAR ").removesuffix(" is: "), 0
    if value not in holds:
        return next((value for value in holds.values() if value.isdigit()), "10"), 0
    while value in holds:
        value, steps = holds[value], steps + 1
    return value, steps


def predict(tokens: list[int]) -> int:
    return VOCABULARY.pieces.index(followed(VOCABULARY.render(tokens))[0])


def test_the_example_of_the_docstring() -> None:
    assert followed(EXAMPLE) == ("47", 2)


@pytest.mark.parametrize(
    "task",
    [
        VariableTracking(),
        VariableTracking(num_chains=6, num_hops=2, num_queries=18, seq_len=300),
        VariableTracking(num_chains=20, num_hops=0, num_queries=5, seq_len=124),
    ],
    ids=["default", "all asked", "no hops, no sentences"],
)
def test_chains_lead_to_the_value_in_as_many_steps_as_reported(task: VariableTracking) -> None:
    assert_certain(task, predict, num_sequences=32)
    batch = task.build(0).batch("train", 0, 16)
    for b, t in batch.scored.nonzero().tolist():
        assert followed(VOCABULARY.render(batch.tokens[b, : t + 1].tolist()))[1] == batch.position[b, t]
    for row in batch.tokens.tolist():
        text = VOCABULARY.render(row)
        assigned = ASSIGNMENT.findall(text)
        assert len({name for name, _ in assigned}) == len(assigned) == task.num_variables
        seen: set[str] = set()
        for name, value in assigned:
            assert value.isdigit() or value in seen
            seen.add(name)
        assert len({value for _, value in assigned if value.isdigit()}) == task.num_chains
        assert len({value for _, value in assigned}) == len(assigned)
        sentences = [line for line in text.split("\n") if line.startswith("The ")]
        assert len(set(sentences)) == len(sentences)


def test_every_depth_is_asked_for_equally_often() -> None:
    batch = VariableTracking().build(0).batch("train", 0, 1000)
    depths = Counter(batch.position[batch.scored].tolist())
    assert sorted(depths) == [1, 2, 3, 4, 5]
    assert [depths[d] / 4000 for d in sorted(depths)] == pytest.approx([0.2] * 5, abs=0.03)


def test_only_the_own_chains_tell() -> None:
    assert_at_chance(VariableTracking(num_queries=1), predict, own=3, num_sequences=400)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(VariableTracking())
    # Of version 1. A change here means that the same config gives other data: raise VariableTracking.version.
    assert digest(VariableTracking().build(0).batch("train", 7, 8)) == "66180199985c0bd4"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_chains": 1}, r"num_chains = 1: must be in \[2, 90\]"),
        ({"num_hops": 65}, r"num_hops = 65: must be in \[0, 64\]: there are 260 variables"),
        ({"num_queries": 21}, r"num_queries = 21: must be in \[1, variables = 20\]"),
        ({"seq_len": 134}, "seq_len = 134: must be at least 135"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VariableTracking(**fields)
