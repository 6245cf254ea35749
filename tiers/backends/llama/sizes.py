"""How large llama.cpp's context is for a tier. Imports no engine, so that plans may ask it too."""

from tiers.screenfile.ask import JsonAsk
from tiers.screenfile.tiers import LlamaTier
from tiers.types import TierError

SEQUENCES = 64
"""Candidates that one call can hold when a position is scored; one logit row is kept for each."""


def batch_size(config: LlamaTier) -> int:
    """Tokens of one call."""
    return config.batch_tokens or (2048 if config.n_gpu_layers else 256)


def sequences(config: LlamaTier) -> int:
    """Sequences of the cache: the shared prompt's, and one for each candidate at work."""
    candidates = config.active if isinstance(config.ask, JsonAsk) else SEQUENCES
    # llama.cpp aborts where a batch cannot hold one answer for each sequence.
    return min(1 + candidates, batch_size(config))


def cells(config: LlamaTier, shared: int, longest: int) -> int:
    """Key-value cells for candidates: one carried over when scoring, several when writing.

    Most candidates are far shorter than the longest, so that room for two of the longest
    holds many.

    Args:
        config: the tier.
        shared: tokens of the shared prompt.
        longest: most tokens that a candidate adds to it, its reply left out.

    Raises:
        TierError: `context_tokens` is too small.
    """
    writes = isinstance(config.ask, JsonAsk)
    each = longest + (config.max_tokens if writes else 0)
    if config.context_tokens is None:
        return batch_size(config) + (2 if writes else 1) * each
    left = config.context_tokens - shared
    if left < batch_size(config) + each:
        raise TierError(
            f"context_tokens is {config.context_tokens:,}, but rubric, batch and one candidate "
            f"need {shared + batch_size(config) + each:,}; raise it or leave it out"
        )
    return left
