"""N-gram predictors that learn from one sequence while they read it: what counting short contexts can do."""

import numpy as np


def ngram_probabilities(string: np.ndarray, counted: np.ndarray, num_tokens: int, order: int) -> np.ndarray:
    """Probabilities ``[rows, T, num_tokens]`` of token t + 1 of each row, given tokens 0 … t of the row alone.

    Contexts of ``order - 1`` tokens are interpolated with shorter ones down to the uniform distribution over what may
    be predicted (Witten and Bell, 1991): ``(c(a) + s · p_shorter(a)) / (c + s)``, with c the visits of a context and s
    the number of different tokens that followed it. An unseen context leaves the prediction to the shorter one.

    Args:
        string: int64 ``[rows, T + 1]``.
        counted: bool ``[num_tokens]``, the tokens that are predicted; the others only stand in contexts.
        num_tokens: size of the vocabulary.
        order: n; 1 counts tokens alone.
    """
    rows, T = string.shape[0], string.shape[1] - 1
    contexts = _contexts(string, order)
    counts = [np.zeros((context.max() + 1, num_tokens)) for context in contexts]
    probabilities = np.empty((rows, T, num_tokens))
    uniform = counted / counted.sum()
    row = np.arange(rows)
    for t in range(T):
        probability = np.broadcast_to(uniform, (rows, num_tokens))
        for context, count in zip(contexts, counts, strict=True):
            seen = count[context[:, t]]
            visits, kinds = seen.sum(axis=1, keepdims=True), (seen > 0).sum(axis=1, keepdims=True)
            mixed = (seen + kinds * probability) / np.maximum(visits + kinds, 1)
            probability = np.where(visits > 0, mixed, probability)
        probabilities[:, t] = probability
        learned = row[counted[string[:, t + 1]]]
        for context, count in zip(contexts, counts, strict=True):
            count[context[learned, t], string[learned, t + 1]] += 1
    return probabilities


def _contexts(string: np.ndarray, order: int) -> list[np.ndarray]:
    """For n = 1 … ``order``, ``[rows, T]`` numbers of the contexts of n - 1 tokens, each row's its own."""
    rows, T = string.shape[0], string.shape[1] - 1
    base = string.max() + 2
    key = np.repeat(np.arange(rows)[:, None], T, axis=1)
    contexts = [key]
    for back in range(order - 1):
        token = np.full((rows, T), base - 1)
        token[:, back:] = string[:, : T - back]
        key = np.unique(key * base + token, return_inverse=True)[1].reshape(rows, T)
        contexts.append(key)
    return contexts
