"""The Ray cluster that a search joins, or starts on this machine.

Knows Ray, and imports it only to join a cluster.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from ..config.config import ConfigError
from ..config.scoring import WorkersSection

CONNECT_TIMEOUT = 10.0
"""Seconds within which a cluster must answer."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""No usage statistics are sent, and no advice is printed."""


def check_ray() -> None:
    """Refuse `engine: ray` where Ray is not installed.

    Raises:
        ConfigError: If it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "workers.engine `ray` needs the package ray, which is not installed; run: pip install "
            "'heterosis[ray]', or use `engine: local`"
        )


def connect(section: WorkersSection) -> None:
    """Join the configured cluster, or start one on this machine.

    Raises:
        ConfigError: If the cluster cannot be reached.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    here = section.address is None
    options: dict[str, Any] = {"address": "local" if here else section.address}
    if here:
        options |= {"include_dashboard": False}
        needed = max(section.num * section.cpus_per_worker, os.cpu_count() or 1)
        options["num_cpus"] = int(-(-needed // 1))
    try:
        _check_reachable(section.address)
        with _own_signals():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"workers.address must be that of a running Ray cluster, got `{section.address}` "
            f"({' '.join(str(error).split())[:200]}); start one by `ray start --head`, or leave "
            "`address` out"
        ) from error


def disconnect() -> None:
    """Leave the cluster; one that was started here is shut down."""
    import ray

    with _own_signals():
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise OSError unless ``HOST:PORT`` accepts connections: Ray itself would exit."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM: Ray replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
