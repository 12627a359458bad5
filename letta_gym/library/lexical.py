"""Lexical retrieval: TF-IDF cosine between a text and each skill's name, description and body."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[a-z][a-z0-9]+")
_STOP_WORDS = """
about after all also an and any are as at be because been before being but by can could did do does
each even every few for from get had has have he her his how if in into is it its just me more most
much my need no not now of on one only or other our out over please same she should so some such
than that the their them then there these they this those through to too up us very want was way we
were what when where which who why will with would you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_SMALL = 1 << 20  # entries of a table of all terms and documents; 8 MB
_MOST_WORDS = 1 << 16
_ENDINGS = ("ings", "ing", "ied", "ies", "ed", "es", "s")


def terms(text: str) -> list[str]:
    """Lower-case words of ``text`` without stop words, each cut to a crude stem."""
    return [term for term in map(_TERMS.__getitem__, _WORD.findall(text.lower())) if term]


class _Terms(dict[str, str]):
    """The stem of each word that was met, nothing for a stop word; a cache of bounded size."""

    def __missing__(self, word: str) -> str:
        if len(self) >= _MOST_WORDS:
            self.clear()
        self[word] = term = "" if word in _STOP else _stem(word)
        return term


_TERMS = _Terms()


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _count(words: list[str]) -> dict[str, int]:
    """How often each word occurs; a Counter costs several times more for a short text."""
    count: dict[str, int] = {}
    for word in words:
        count[word] = count.get(word, 0) + 1
    return count


class LexicalIndex:
    """Inverted index over n documents.

    Weights are the usual ones: term frequency 1 + ln tf, inverse document frequency
    1 + ln((1 + n) / (1 + df)), rows of unit length (Salton and Buckley, 1988).
    """

    def __init__(self, documents: Sequence[str]) -> None:
        counts = [_count(terms(document)) for document in documents]
        frequency = Counter(term for count in counts for term in count)
        self.size = len(documents)
        self._idf = {
            term: 1.0 + math.log((1 + self.size) / (1 + df)) for term, df in frequency.items()
        }
        self._unseen = (-1, 1.0 + math.log(1 + self.size))
        postings: dict[str, tuple[list[int], list[float]]] = {term: ([], []) for term in frequency}
        for row, count in enumerate(counts):
            for term, weight in self._weigh(count).items():
                postings[term][0].append(row)
                postings[term][1].append(weight)
        # One array after the other, so that a query gathers all of its postings at once.
        self._known = {term: (i, self._idf[term]) for i, term in enumerate(postings)}
        lengths = np.array([len(rows) for rows, _ in postings.values()], np.int64)
        self._length, self._start = lengths, np.cumsum(lengths) - lengths
        self._rows = np.array([r for rows, _ in postings.values() for r in rows], np.int64)
        self._weights = np.array([w for _, weights in postings.values() for w in weights])
        self._table: NDArray[np.float64] | None = None
        if len(postings) * self.size <= _SMALL:
            self._table = np.zeros((len(postings), self.size))
            self._table[np.arange(len(postings)).repeat(lengths), self._rows] = self._weights

    def scores(self, text: str) -> NDArray[np.float32]:
        """Cosine of ``text`` with every document, float32 in [0, 1], shape (n,)."""
        found, weights, squares = [], [], 0.0
        look_up, unseen = self._known.get, self._unseen
        for term, tf in _count(terms(text)).items():
            at, weight = look_up(term, unseen)
            if tf > 1:
                weight *= 1.0 + math.log(tf)
            squares += weight * weight
            if at >= 0:
                found.append(at)
                weights.append(weight)
        if not found:
            return np.zeros(self.size, np.float32)
        query = np.array(weights)
        query /= math.sqrt(squares)
        which, table = np.array(found), self._table
        total = self._gather(which, query) if table is None else query @ table.take(which, 0)
        return np.minimum(total, 1.0).astype(np.float32)

    def _gather(self, term: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the terms' postings (t,), each times its weight (t,), for every document (n,)."""
        length = self._length[term]
        end = length.cumsum()
        at = np.arange(end[-1]) + (self._start[term] - end + length).repeat(length)
        weights = self._weights[at] * weight.repeat(length)
        return np.bincount(self._rows[at], weights, self.size).astype(np.float64, copy=False)

    def _weigh(self, count: dict[str, int]) -> dict[str, float]:
        """Weights of a document's own terms, a vector of unit length."""
        weights = {term: (1.0 + math.log(tf)) * self._idf[term] for term, tf in count.items()}
        norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {term: w / norm for term, w in weights.items()}
