"""Measure free memory and the memory of this process.

Host memory means anonymous pages, which the kernel cannot take back. Pages of files that are
mapped for reading (weights, cached statistics) are dropped when memory is short and do not count.
Knows nothing of models.
"""

import ctypes
import sys
from pathlib import Path

import psutil
import torch

__all__ = ["Tidy", "device_free", "give_back", "host_free", "process_bytes"]
SLACK = 1 << 23
"""Bytes of growth that are ignored."""
_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # no limit: version 1 writes the largest page count


def process_bytes() -> int:
    """Return the anonymous memory of this process in bytes (RssAnon; all resident memory if not
    on Linux)."""
    status = _PROC / "status"
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


def give_back() -> None:
    """Return freed heap memory to the system; only glibc keeps it and has a function for this."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Tidy:
    """Keeps the heap from growing by freed memory, at some 0.1 ms per call.

    glibc before 2.38 seldom reuses freed aligned blocks: eager arithmetic over a model of 310 MB
    left up to 54 MB of them, 8 MB if this is called every 16 M entries.
    """

    def __init__(self) -> None:
        self._before = process_bytes()

    def __call__(self) -> None:
        """Return freed memory if the process has grown by SLACK since the last time."""
        if process_bytes() > self._before + SLACK:
            give_back()
            self._before = process_bytes()


def host_free() -> int:
    """Return the free host memory in bytes: the machine's or that of the control group."""
    return max(min([psutil.virtual_memory().available, *_cgroup_rooms()]), 0)


def device_free(device: torch.device) -> int:
    """Return the free memory of a device in bytes; that of the host for a CPU."""
    if device.type == "cpu":
        return host_free()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    raise ValueError(
        f"memory can be planned for cpu and cuda, got device {device}; use one of these"
    )


def _cgroup_rooms() -> list[int]:
    # Free memory below each limit from the process's control group to the root.
    rooms = []
    for line in _lines(_PROC / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, root = ("memory.max", "memory.current"), _CGROUPS
        elif "memory" in controllers.split(","):
            names, root = ("memory.limit_in_bytes", "memory.usage_in_bytes"), _CGROUPS / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        rooms += [_room(at, *names) for at in (folder, *folder.parents) if at.is_relative_to(root)]
    return [room for room in rooms if room is not None]


def _room(folder: Path, limit_name: str, usage_name: str) -> int | None:
    limit, usage = (_lines(folder / name) for name in (limit_name, usage_name))
    if not limit or not usage or limit[0] == "max" or int(limit[0]) > _UNLIMITED:
        return None
    # Cached file pages count as used, but the kernel reclaims them first.
    stat = {key: int(count) for key, count in map(str.split, _lines(folder / "memory.stat"))}
    kinds = ("inactive_file", "active_file")
    cached = sum(stat.get(f"total_{kind}", stat.get(kind, 0)) for kind in kinds)
    return int(limit[0]) - int(usage[0]) + cached


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
