"""Random automata: words are walks, splits share no language, oracle and n-grams against the optimum."""

from itertools import product

import numpy as np
import pytest

from icl_eval.tasks import RegBench
from icl_eval.tasks.ngram import ngram_probabilities
from icl_eval.tasks.regbench import Automata, _language_hash
from tests.tasks.generated import assert_pure, digest

SMALL = RegBench(seq_len=60, max_states=5, max_symbols=4, max_edges=1, max_word=9)


def accepted(automata: Automata, row: int, depth: int) -> frozenset[tuple[int, ...]]:
    """All words of a row's language of up to ``depth`` symbols."""
    words, front = set(), {(): 0}
    for _ in range(depth):
        following = {}
        for word, state in front.items():
            edges = zip(automata.symbol[row, state], automata.target[row, state], strict=True)
            following |= {(*word, int(symbol)): int(target) for symbol, target in edges}
        words |= following.keys()
        front = following
    return frozenset(words)


def test_words_are_walks_of_their_automaton() -> None:
    task = RegBench(seq_len=300)
    string, states, automata = task.strings(np.random.default_rng(0), 20, "train")
    for row in range(20):
        assert string[row, 0] == 0
        state, length = 0, 0
        for t in range(1, 301):
            token = string[row, t]
            if token == 0:
                assert 1 <= length <= task.max_word
                state, length = 0, 0
            else:
                (edge,) = {
                    int(target)
                    for symbol, target in zip(automata.symbol[row, state], automata.target[row, state], strict=True)
                    if symbol == token
                }
                assert automata.legal[row, state, token]
                assert edge != state
                state, length = edge, length + 1
            assert states[row, t] == state
    edges = automata.legal.sum(2)
    assert edges.min() == 1
    assert edges.max() == 3
    targets = np.sort(automata.target, axis=2)
    assert ((np.diff(targets, axis=2) > 0).sum(2) + 1 == edges).all()
    assert len(np.unique(edges, return_counts=True)[1]) == 3


def test_targets_follow_tokens_and_word_ends_are_not_scored() -> None:
    batch = RegBench().build(0).batch("train", 0, 8)
    assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
    assert (batch.scored == (batch.targets > 0)).all()
    assert batch.position[0].tolist() == list(range(1, 513))


def test_splits_share_no_language_even_where_there_are_few() -> None:
    rng = np.random.default_rng(0)
    languages = {}
    for split in ("train", "heldout"):
        automata = SMALL.automata(rng, 400, split)  # type: ignore[arg-type]
        languages[split] = {accepted(automata, row, 8) for row in range(400)}
    assert not languages["train"] & languages["heldout"]
    assert len(languages["train"]) < 400, "languages repeat, or the test could not fail"


def test_the_hash_does_not_see_what_states_are_called() -> None:
    automata = RegBench()._automata(np.random.default_rng(0), 50)
    rename = np.append(0, 1 + np.random.default_rng(1).permutation(11))
    back = np.argsort(rename)
    renamed = Automata(automata.symbol[:, back], rename[automata.target[:, back]], automata.legal[:, back])
    assert (_language_hash(automata) == _language_hash(renamed)).all()
    assert len(set(_language_hash(automata))) == 50


def test_the_oracle_meets_the_optimum_and_n_grams_do_not_beat_it() -> None:
    task = RegBench(seq_len=256)
    string, states, automata = task.strings(np.random.default_rng(9), 400, "heldout")
    row, scored = np.arange(400)[:, None], string[:, 1:] > 0
    legal = automata.legal[row, states[:, :-1]]
    assert legal[row, np.arange(256), string[:, 1:]][scored].all()
    loss = np.where(scored, np.log(legal.sum(2)), 0).sum(1) / scored.sum(1)
    positions = np.arange(1, 257)
    assert abs(loss.mean() - task.optimum(positions).mean()) < 4 * loss.std() / 20
    for curve in task.anchors(positions).values():
        assert (curve > task.optimum(positions) + 0.05).all()


def test_n_gram_accuracies_are_near_the_values_measured_elsewhere() -> None:
    string, states, automata = RegBench(seq_len=357).strings(np.random.default_rng(1), 150, "train")
    scored = string[:, 1:] > 0
    for order, accuracy in ((1, 0.469), (2, 0.831), (3, 0.939), (5, 0.956)):
        likeliest = ngram_probabilities(string, np.arange(19) > 0, 19, order).argmax(2)
        hits = automata.legal[np.arange(150)[:, None], states[:, :-1], likeliest]
        assert hits[scored].mean() == pytest.approx(accuracy, abs=0.03), order


def test_contexts_of_other_sequences_tell_nothing() -> None:
    task = RegBench(seq_len=256)
    string, _, _ = task.strings(np.random.default_rng(4), 200, "train")
    mixed = np.concatenate([np.roll(string, 1, axis=0)[:, :200], string[:, 200:]], axis=1)
    scored = string[:, 201:221] > 0
    losses = []
    for each in (string, mixed):
        probability = ngram_probabilities(each, np.arange(19) > 0, 19, 3)[:, 200:220]
        losses.append(-np.log(np.take_along_axis(probability, string[:, 201:221, None], axis=2)[..., 0][scored]).mean())
    assert losses[0] < 1.1
    assert losses[1] > task.chance()


def test_an_n_gram_by_hand() -> None:
    string = np.array([[1, 2, 1, 2, 0, 1]])
    probability = ngram_probabilities(string, np.array([False, True, True]), 3, 2)[0]
    unigram = [(0, 1 / 2, 1 / 2)]
    unigram += [(0, 0.5 / 2, 1.5 / 2)]  # 2 seen once, one kind, mixed half and half with the uniform
    np.testing.assert_allclose(probability[0], unigram[0])
    np.testing.assert_allclose(probability[1], unigram[1])
    one_two = (0, (1 + 2 * 0.5) / 4, (1 + 2 * 0.5) / 4)  # 1 and 2 seen once each
    np.testing.assert_allclose(probability[2], [0, one_two[1] / 2, (1 + one_two[2]) / 2])
    assert probability.sum(1) == pytest.approx(1)
    for word in product((1, 2), repeat=4):
        total = ngram_probabilities(np.array([word]), np.array([False, True, True]), 3, 3).sum(2)
        assert total == pytest.approx(1)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    task = RegBench(seq_len=128)
    assert_pure(task)
    # Of version 1. A change here means that the same config gives other data: raise RegBench.version.
    assert digest(task.build(0).batch("train", 7, 8)) == "77a0256058144a22"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_states": 4}, r"max_states = 4: must be in \[5, 64\]"),
        ({"max_edges": 4}, r"max_edges = 4: must be in \[1, 3\]"),
        ({"max_word": 0}, "max_word = 0: must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegBench(**fields)
