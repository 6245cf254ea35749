"""Evidence that may be read at any time: mixtures of likelihood ratios.

Each is a nonnegative process that starts at 1 and does not grow on average as long as the
hypothesis holds, so it ever exceeds 1/delta with probability at most delta (Ville 1939). The form,
a weighted mean of likelihood ratios against a few fixed alternatives, is that of mixture sequential
tests; Waudby-Smith and Ramdas 2020 (arXiv:2006.04347) treat draws without replacement.
"""

import numpy as np

from tiers.calibration.draws import Floats, Ids, log_chance

FACTORS = np.array([0.05, 0.25, 0.5, 0.75])
"""Alternatives: shares of the number of errors that the hypothesis claims."""
WEIGHTS = np.array([0.15, 0.3, 0.35, 0.2])


def log_evidence_of_fewer(
    errors: Ids | int, region: Ids | int, claimed: Ids | int, drawn: Ids | int
) -> Floats:
    """(n,) log evidence that a region holds fewer than `claimed` errors; (1,) for whole numbers.

    Args:
        errors: found among the drawn.
        region: items in the region.
        claimed: errors under the hypothesis, at least 1.
        drawn: items drawn from the region without replacement, so far.
    """
    fewer = np.floor(FACTORS[:, None] * claimed).astype(np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):  # -inf - -inf is NaN: see below
        mixed = np.exp(log_chance(errors, region, fewer, drawn)).T @ WEIGHTS
        null = log_chance(errors, region, np.minimum(claimed, region), drawn)
        evidence: Floats = np.log(mixed) - null
    # More errors were found than alternatives and hypothesis allow: no evidence of fewer.
    evidence[np.isnan(evidence)] = -np.inf
    return evidence
