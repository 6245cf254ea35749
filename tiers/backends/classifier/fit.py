"""Training of a classifier: which texts to have labelled, and what their labels teach.

The only module that imports scikit-learn, which takes seconds: a run that scores does without.
"""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tiers.backends.classifier.tier import WORD, pack, version_of
from tiers.types import TierError

Floats = NDArray[np.float64]
TERMS = 50_000
"""The most frequent words and pairs of words; what is rarer is not weighed."""
TOPICS = 50
"""Directions in which words occur together, learned from texts without labels."""
STRENGTH = 10.0
"""C of the logistic regression."""
FOLDS = 5
TRAINING = 1
"""Makes another lot of a seed than the draw has that certifies."""


class Fitted(NamedTuple):
    """A trained classifier."""

    body: bytes
    version: str
    held_out: Floats
    """(n,) score of each training text by a model that did not see its label."""


def fit(texts: Sequence[str], shares: Sequence[float], pool: Sequence[str]) -> Fitted:
    """Train on texts whose labels are shares of a yes, in [0, 1].

    Args:
        texts: (n,) training texts.
        shares: (n,) 1 for yes, 0 for no; what a model is unsure of lies between.
        pool: texts without labels, for how rare words are and which go together.

    Raises:
        TierError: there is no label, all are of one class, or no word occurs in two texts.
    """
    truth = np.asarray(shares, np.float64)
    _check(truth)
    vectorizer, rows = _vectors([*texts, *pool])
    vectors = rows[: len(texts)]
    topics = min(TOPICS, vectors.shape[1] - 1, rows.shape[0] - 1)
    turn = np.zeros((vectors.shape[1], 0))
    if topics > 0:
        turn = TruncatedSVD(topics, random_state=0, n_iter=3).fit(rows).components_.T
    topical = scipy.sparse.csr_matrix(vectors @ turn)
    both: Any = scipy.sparse.hstack([vectors, topical]).tocsr()
    coefficients, bias = _weigh(both, truth)
    words = len(vectorizer.vocabulary_)
    # A topic is a sum of words, so that the model stays one weight a word.
    weight = coefficients[:words] + turn @ coefficients[words:]
    told = "".join(
        sorted(
            f"{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()} {share:.6f}\n"
            for text, share in zip(texts, truth, strict=True)
        )
    )
    digest = hashlib.sha256(told.encode()).hexdigest()
    names = vectorizer.get_feature_names_out().tolist()
    body = pack(names, vectorizer.idf_.tolist(), weight.tolist(), bias, digest)
    return Fitted(body, version_of(body), _held_out(both, truth))


def choose(texts: Sequence[str], rubric: str, count: int, seed: int) -> list[int]:
    """Texts to have labelled for a first model: half are nearest to the rubric, half by lot.

    By lot alone, rare positives would hardly be among them.
    """
    return seeded(likeness(texts, rubric), count, seed)


def seeded(liking: Floats, count: int, seed: int) -> list[int]:
    """As `choose`, from (n,) how near each text is to the rubric."""
    lot = np.random.default_rng([seed, TRAINING]).permutation(len(liking))
    nearest = np.argsort(-liking, kind="stable")
    chosen = dict.fromkeys(nearest[: count // 2].tolist())
    chosen |= dict.fromkeys(lot.tolist())
    return list(chosen)[:count]


def active(
    texts: Sequence[str], rubric: str, told: dict[int, bool], count: int, seed: int
) -> list[int]:
    """Texts to ask a person about next: likely ones and uncertain ones in turn.

    Args:
        texts: all that may be asked about.
        rubric: what is looked for.
        told: labels so far, by place in `texts`.
        count: how many.
        seed: breaks ties.
    """
    left = np.array([place for place in range(len(texts)) if place not in told], np.int64)
    if len(set(told.values())) < 2:
        order = choose([texts[place] for place in left], rubric, count, seed)
        return [int(left[place]) for place in order]
    _, rows = _vectors(texts)
    places = np.array(list(told), np.int64)
    coefficients, bias = _weigh(rows[places], np.array(list(told.values()), np.float64))
    odds = rows[left] @ coefficients + bias
    likely, unsure = np.argsort(-odds, kind="stable"), np.argsort(np.abs(odds), kind="stable")
    turns = dict.fromkeys(int(place) for pair in zip(likely, unsure, strict=True) for place in pair)
    return [int(left[place]) for place in list(turns)[:count]]


def _check(truth: Floats) -> None:
    if not truth.size:
        raise TierError(
            "no label is there to train on; ask for some: tamis distil FILE --labels 200"
        )
    positive = int((truth > 0.5).sum())
    if positive in (0, truth.size):
        word = "yes" if positive else "no"
        raise TierError(
            f"all {truth.size:,} training labels are {word}, and a classifier learns from both; "
            "raise --labels, or look whether the rubric asks for what you look for"
        )


def _vectors(texts: Sequence[str]) -> tuple[TfidfVectorizer, scipy.sparse.csr_matrix]:
    """TF-IDF of words and pairs that occur in two texts at least."""
    vectorizer = TfidfVectorizer(
        token_pattern=WORD.pattern, ngram_range=(1, 2), sublinear_tf=True, min_df=2,
        max_features=TERMS,
    )  # fmt: skip
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn's words for both causes
        raise TierError(
            "no word of two letters occurs in two texts, so that there is nothing to learn by; "
            "leave the classifier out of the screen"
        ) from error


def _weigh(rows: scipy.sparse.csr_matrix, truth: Floats) -> tuple[Floats, float]:
    """Weights and bias; each text is a yes by its share and a no by the rest, classes even."""
    n = len(truth)
    even = np.concatenate(
        [truth * n / (2 * truth.sum()), (1 - truth) * n / (2 * (1 - truth).sum())]
    )
    twice, said = scipy.sparse.vstack([rows, rows]).tocsr(), np.repeat([1, 0], n)
    used = even > 0
    met = np.flatnonzero(rows.getnnz(axis=0))  # what no text has would weigh nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=STRENGTH, max_iter=300)
        model.fit(twice[used][:, met], said[used], sample_weight=even[used])
    coefficients = np.zeros(rows.shape[1])
    coefficients[met] = model.coef_[0]
    return coefficients, float(model.intercept_[0])


def _held_out(rows: scipy.sparse.csr_matrix, truth: Floats) -> Floats:
    """(n,) scores by models of the other folds; positives are dealt to the folds evenly."""
    order = np.argsort(-truth, kind="stable")
    fold = np.empty(len(truth), np.int64)
    fold[order] = np.arange(len(truth)) % FOLDS
    odds = np.zeros(len(truth))
    for each in range(FOLDS):
        inside, outside = fold == each, fold != each
        seen = truth[outside]
        if inside.any() and (seen > 0.5).any() and (seen <= 0.5).any():
            coefficients, bias = _weigh(rows[outside], seen)
            odds[inside] = rows[inside] @ coefficients + bias
    scores: Floats = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    return scores


def likeness(texts: Sequence[str], rubric: str) -> Floats:
    """(n,) how many of the rubric's words a text has, rare words counting more."""
    try:
        vectorizer, rows = _vectors(texts)
    except TierError:
        return np.zeros(len(texts))
    found: Floats = (rows @ vectorizer.transform([rubric]).T).toarray().ravel()
    return found
