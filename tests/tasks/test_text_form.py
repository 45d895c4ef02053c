"""Tasks as text: every form is solved by reading it, fits its length, and is the same whenever it is drawn."""

import hashlib
import re
from collections.abc import Callable

import numpy as np
import pytest

from icl_eval.tasks.text_form import TEXT_FORMS, TextExample, example
from tests.tasks.test_needle import NUMBER
from tests.tasks.test_phonebook import ENTRY
from tests.tasks.test_variable_tracking import ASSIGNMENT


def read_needle(prompt: str) -> tuple[list[str], int]:
    key = prompt.rsplit("numbers for ", 1)[-1].removesuffix(" is:")
    (match,) = (m for m in NUMBER.finditer(prompt) if m[1] == key)
    return [match[2]], match.start(2)


def read_phonebook(prompt: str) -> tuple[list[str], int]:
    name = prompt.rsplit("\n", 1)[-1].removesuffix(":")
    (match,) = (m for m in ENTRY.finditer(prompt) if m[1] == name)
    return [match[2]], match.start(2)


def read_variables(prompt: str) -> tuple[list[str], int]:
    (held,) = re.findall(r"The variables that hold (\d\d) are:$", prompt)
    known = {held}
    for name, value in ASSIGNMENT.findall(prompt):
        known |= {name} if value in known else set()
    names = [name for name, _ in ASSIGNMENT.findall(prompt) if name in known]
    return names, prompt.index(f"VAR {names[0]} = ")


def read_recall(prompt: str) -> tuple[list[str], int]:
    *lines, question = prompt.split("\n")
    pairs = [line.split(": ") for line in lines]
    last = max(i for i, (key, _) in enumerate(pairs) if key == question.removesuffix(":"))
    return [pairs[last][1]], sum(len(line) + 1 for line in lines[:last])


def read_classification(prompt: str) -> tuple[list[str], int]:
    """Most votes of the question's words, each for the label that it was shown with most often."""
    *lines, question = prompt.split("\n")
    shots = [line.split(" -> ") for line in lines]
    votes: dict[str, float] = {}
    for word in question.removesuffix(" ->").split(" "):
        labels = [label for item, label in shots if word in item.split(" ")]
        for label in set(labels):
            votes[label] = votes.get(label, 0) + labels.count(label) / len(labels)
    best = max(votes, key=lambda label: votes[label])
    start = next(i for i, (_, label) in enumerate(shots) if label == best)
    return [best], sum(len(line) + 1 for line in lines[:start])


READERS: dict[str, Callable[[str], tuple[list[str], int]]] = {
    "needle": read_needle,
    "phonebook": read_phonebook,
    "variable_tracking": read_variables,
    "recall": read_recall,
    "classification": read_classification,
}


def solved(form: str, made: TextExample) -> bool:
    answers, evidence = READERS[form](made.prompt)
    assert made.prompt == made.prompt.strip()
    assert not made.choices or made.answers[0] in made.choices
    return list(made.answers) == answers and made.depth == pytest.approx(evidence / len(made.prompt))


def test_every_form_has_a_reader() -> None:
    assert READERS.keys() == TEXT_FORMS.keys()


@pytest.mark.parametrize("num_bytes", [800, 5000])
@pytest.mark.parametrize("form", ["needle", "phonebook", "variable_tracking", "recall"])
def test_reading_finds_the_answers_where_depth_says(form: str, num_bytes: int) -> None:
    examples = [example(form, seed=3, index=index, num_bytes=num_bytes) for index in range(20)]
    assert all(solved(form, made) for made in examples)
    assert all(num_bytes - 80 <= len(made.prompt) <= num_bytes for made in examples)
    assert len({made.prompt for made in examples}) == 20
    assert np.std([made.depth for made in examples]) > 0.05


@pytest.mark.parametrize(
    ("form", "knobs"),
    [("needle", {"num_needles": 12, "num_queries": 3}), ("variable_tracking", {"num_chains": 8, "num_hops": 1}),
     ("recall", {"num_rewrites": 20}), ("classification", {"noise": 0.0})],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_knobs_reach_the_form(form: str, knobs: dict) -> None:
    examples = [example(form, seed=0, index=index, num_bytes=1500, **knobs) for index in range(20)]
    assert all(solved(form, made) for made in examples)
    if form == "recall":
        assert all(len(re.findall(made.prompt.rsplit("\n", 1)[-1], made.prompt)) > 2 for made in examples)
    if form == "variable_tracking":
        assert all(len(made.answers) == 2 for made in examples)


def test_votes_of_words_classify_in_spite_of_noise() -> None:
    examples = [example("classification", seed=0, index=index, num_bytes=3000) for index in range(100)]
    assert np.mean([solved("classification", made) for made in examples]) > 0.9
    assert all(len(made.choices) == 4 for made in examples)
    assert max(np.bincount([made.choices.index(made.answers[0]) for made in examples])) < 45


@pytest.mark.parametrize("num_bytes", [400, 5000, 20_000])
def test_a_question_to_classify_is_no_line_over_again(num_bytes: int) -> None:
    for index in range(30):
        prompt = example("classification", seed=0, index=index, num_bytes=num_bytes).prompt
        *lines, question = [set(line.split(" -> ")[0].removesuffix(" ->").split(" ")) for line in prompt.split("\n")]
        assert len(question) == 3
        assert question not in lines


def test_a_question_is_a_line_over_again_where_it_can_be_nothing_else() -> None:
    made = example("classification", seed=0, index=0, num_bytes=900, words_per_class=3, noise=0.0)
    assert solved("classification", made)


def test_examples_are_the_same_everywhere() -> None:
    text = repr([example(form, seed=0, index=2, num_bytes=900) for form in READERS])
    # A change here means that prompts change: say so in the changelog, as results cannot be compared across it.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "6fb5efd4a7b68a94"
    assert example("recall", seed=1, index=2, num_bytes=900) != example("recall", seed=0, index=2, num_bytes=900)


@pytest.mark.parametrize(
    ("form", "num_bytes", "knobs", "message"),
    [
        ("nedle", 900, {}, "unknown text form 'nedle'; did you mean 'needle'"),
        ("needle", 40, {}, "text form 'needle' with num_bytes = 40: .*must be at least 59"),
        ("phonebook", 100, {}, "num_bytes = 100: too few bytes for the shortest prompt"),
        ("recall", 60, {}, "num_bytes = 60: too few bytes for 4 pairs"),
        ("classification", 100, {}, "num_bytes = 100: too few bytes for a line of each of 4 classes"),
        ("classification", 900, {"num_classes": 30}, "num_classes = 30 and words_per_class = 8"),
        ("needle", 900, {"num_queries": 5}, "num_queries = 5: must be in"),
    ],
)
def test_what_cannot_be_is_refused(form: str, num_bytes: int, knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(form, seed=0, index=0, num_bytes=num_bytes, **knobs)
