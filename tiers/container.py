"""What this process may use of its machine: a container's share, and not all that its host has."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def cores(root: Path = Path("/")) -> float:
    """Processors that this process may use: its affinity, or the quota of a control group."""
    try:
        allowed = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        allowed = float(os.cpu_count() or 1)
    quotas = [allowed]
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max")  # version 2: "200000 100000", or "max 100000"
        quota, period = words if len(words) == 2 else ("max", "1")
        if not words:
            quota = next(iter(_words(folder / "cpu.cfs_quota_us")), "max")
            period = next(iter(_words(folder / "cpu.cfs_period_us")), "1")
        if quota not in ("max", "-1"):
            quotas.append(int(quota) / int(period))
    return min(quotas)


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that may be used, and those that are free of them."""
    host = psutil.virtual_memory()
    total, free = host.total, host.available
    for folder in _groups(root, "memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most = next(iter(_words(folder / limit)), "max")
            if most.isdigit() and int(most) < host.total:
                taken = int(next(iter(_words(folder / used)), "0")) - _cached(folder)
                total, free = min(total, int(most)), min(free, int(most) - max(taken, 0))
    return total, max(free, 0)


def _cached(folder: Path) -> int:
    """Bytes of a group's usage that are pages of files, which the system drops when it needs to."""
    words = _words(folder / "memory.stat")
    facts = dict(zip(words[::2], words[1::2], strict=False))
    return int(facts.get("total_inactive_file") or facts.get("inactive_file") or 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that bound this process, from its own up to the root."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if controllers:
            if controller not in controllers.split(","):
                continue
            base = base / controller
        # In a container the path is often the host's, and the group is mounted as the root.
        for place in (Path(path), *Path(path).parents):
            yield base / str(place).lstrip("/")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
