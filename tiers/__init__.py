"""Judging. What a tier of one's own needs stands here: it reads candidates and gives judgements.

Raise a `TierError` where the tier cannot go on; its message is shown to the user.
"""

from tiers.types import Candidate, Judgement, TierError

__all__ = ["Candidate", "Judgement", "TierError"]
