"""Where a tier works: in this process, in a child of it, or on the machines of a cluster."""

from tiers.host import HostedTier
from tiers.opening import open_backend
from tiers.screenfile.tiers import EngineTier, HttpTier
from tiers.tier import Job, Tier


def open_tier(job: Job) -> Tier:
    """Open a tier for use by a flow: engines in child processes, what only waits in this one.

    Raises:
        TierError: the engine or its model cannot be opened.
        MissingExtra: the tier wants a cluster, and Ray is not installed.
    """
    match job.config:
        case HttpTier():
            return open_backend(job)
        case EngineTier(workers=workers) if workers is not None:
            from tiers.cluster import RayTier

            return RayTier(job, workers)
        case _:
            return HostedTier(job)
