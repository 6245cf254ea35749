"""Tier 0: a linear model over words and pairs of words, without a library of learning.

What it weighs is JSON, and never a pickle: a database that a stranger made runs no code here.
"""

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiers.screenfile.tiers import ClassifierTier
from tiers.tier import Inspection, Job, config_of
from tiers.types import Candidate, Judgement, TierError

Floats = NDArray[np.float64]
WORD = re.compile(r"\w\w+")
"""As scikit-learn's vectorizer reads words."""
LARGEST = 64 << 20
"""Bytes of a model when unpacked; one of 50,000 terms has 3 million."""


class Weights(NamedTuple):
    """What a version weighs."""

    places: Mapping[str, int]
    """Of a word or a pair of words, from 1 on."""
    squared: Floats
    """(terms + 1,) rarity (inverse document frequency) squared, by place."""
    weight: Floats
    """(terms + 1,) rarity times weight, by place."""
    bias: float

    def score(self, text: str) -> float:
        """In (0, 1): TF-IDF with 1 + log of the counts, of length 1, weighed by a logistic curve.

        Equal to scikit-learn's TfidfVectorizer and LogisticRegression but for rounding.
        """
        words = WORD.findall(text.lower())
        words += map(" ".join, pairwise(words[:]))
        known = np.fromiter(filter(None, map(self.places.get, words)), np.int64)
        if not known.size:
            return _logistic(self.bias)
        known.sort()
        first = np.flatnonzero(np.diff(known, prepend=0))
        often = 1.0 + np.log(np.diff(first, append=known.size))
        found = known[first]
        square = float((often * often * self.squared[found]).sum())
        return _logistic(float((often * self.weight[found]).sum()) / math.sqrt(square) + self.bias)


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-max(min(odds, 30.0), -30.0)))


def pack(
    terms: Sequence[str], rarity: Sequence[float], weight: Sequence[float], bias: float, digest: str
) -> bytes:
    """A model as it is stored; `digest` names what it was trained on."""
    told = {
        "bias": float(f"{bias:.9g}"),
        "digest": digest,
        "terms": {
            term: [float(f"{one:.7g}"), float(f"{other:.7g}")]
            for term, one, other in zip(terms, rarity, weight, strict=True)
        },
    }
    return zlib.compress(json.dumps(told, sort_keys=True, ensure_ascii=False).encode(), 6)


def version_of(body: bytes) -> str:
    """Names a model, and with it its training set: 16 hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()[:16]


def unpack(body: bytes, version: str) -> Weights:
    """A model as it was packed.

    Raises:
        TierError: it is another than the version says, or none.
    """
    try:
        if version_of(body) != version:
            raise ValueError("its digest is another")
        told = json.loads(zlib.decompressobj().decompress(body, LARGEST))
        table = np.array([(0.0, 0.0), *told["terms"].values()], np.float64)
        places = {str(term): place for place, term in enumerate(told["terms"], 1)}
        rarity, weight = table.T
        return Weights(places, rarity**2, rarity * weight, float(told["bias"]))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise TierError(
            f"version {version} of the classifier is damaged: {error}; train another: tamis distil"
        ) from error


def identity(job: Job) -> dict[str, Any]:
    """The version, which is a digest of the weights and of what they were trained on.

    Raises:
        TierError: the tier was not given its weights.
    """
    config = config_of(job, ClassifierTier)
    _body(config)
    return {"backend": "classifier", "version": config.version, "rubric": job.rubric}


def inspect(job: Job, _text: str) -> Inspection:
    """Say which version it is."""
    version = config_of(job, ClassifierTier).version
    said = "the newest version that was admitted" if version is None else f"version {version}"
    return Inspection(f"words and pairs of words, {said}")


class Classifier:
    """Scores texts by their words."""

    def __init__(self, job: Job) -> None:
        config = config_of(job, ClassifierTier)
        self._weights = unpack(_body(config), str(config.version))
        self.rates: Mapping[str, float] = {}
        self.remarks: Sequence[str] = ()

    def judge(self, candidates: Iterable[Candidate]) -> Iterator[Judgement]:
        score = self._weights.score
        for candidate in candidates:
            yield Judgement(candidate.id, score(candidate.text))

    def close(self) -> None:
        """Nothing is held."""


def _body(config: ClassifierTier) -> bytes:
    if config.body is None:
        raise TierError(
            f"tier '{config.name}' has no trained version here; write: tamis distil FILE"
        )
    return config.body


open_here = Classifier
