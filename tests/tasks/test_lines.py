"""Lines of pieces: laid end to end, and rendered as they read."""

import numpy as np

from icl_eval.tasks import words
from icl_eval.tasks.lines import HAYSTACK, NO_TOKEN, SENTENCE, Vocabulary, digits, line_starts, sentences, sequences
from icl_eval.tasks.needle import VOCABULARY as NEEDLE
from icl_eval.tasks.phonebook import VOCABULARY as PHONEBOOK
from icl_eval.tasks.variable_tracking import VOCABULARY as VARIABLES


def test_lines_are_laid_end_to_end() -> None:
    lines = np.array([[[1, 2, 3], [4, NO_TOKEN, NO_TOKEN], [5, 6, NO_TOKEN]]])
    asked = lines == 6
    drawn = sequences(lines, asked, lines * 10, seq_len=7, blank=0)
    assert drawn["tokens"].tolist() == [[0, 0, 1, 2, 3, 4, 5]]
    assert drawn["targets"].tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert drawn["scored"].tolist() == [[False] * 6 + [True]]
    assert drawn["position"][drawn["scored"]].tolist() == [60]
    assert line_starts(lines).tolist() == [[0, 3, 4]]


def test_pieces_are_told_apart() -> None:
    for vocabulary in (NEEDLE, PHONEBOOK, VARIABLES):
        assert len(set(vocabulary.pieces)) == len(vocabulary.pieces)


def test_words_are_told_apart() -> None:
    lexicon = words.ADJECTIVES + words.AGENTS + words.VERBS + words.OBJECTS
    assert len(set(lexicon)) == len(lexicon) == 192
    assert len(set(words.FIRST_NAMES)) == len(set(words.LAST_NAMES)) == 128
    assert len(set(words.SYLLABLES)) == 70


def test_sentences_use_every_word_and_none_comes_twice() -> None:
    vocabulary = Vocabulary(**HAYSTACK)
    drawn = sentences(np.random.default_rng(0), 2, 2000, vocabulary)
    for row in drawn.tolist():
        assert len({tuple(sentence) for sentence in row}) == 2000
    assert drawn.shape == (2, 2000, SENTENCE)
    assert set(drawn.flatten().tolist()) == set(range(len(vocabulary.pieces)))
    first = vocabulary.render(drawn[0, 0].tolist())
    the, adjective, agent, verb, the_again, other, thing = first.removesuffix(".\n").split(" ")
    assert (the, the_again) == ("The", "the")
    assert adjective in words.ADJECTIVES
    assert agent in words.AGENTS
    assert verb in words.VERBS
    assert other in words.ADJECTIVES
    assert thing in words.OBJECTS


def test_digits_have_their_first_in_range_and_numbers_are_distinct() -> None:
    drawn = digits(np.random.default_rng(0), 3, 300, 3, (6, 10))
    assert set(drawn[:, :, 0].flatten().tolist()) == {6, 7, 8, 9}
    assert set(drawn[:, :, 1:].flatten().tolist()) == set(range(10))
    assert all(len({tuple(number) for number in row}) == 300 for row in drawn.tolist())
