"""Two machines as far as Ray can tell: network namespaces of this one, joined by one cable.

All traffic stays within the namespaces; addresses are from RFC 5737's blocks, which no one has.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

RAY = (sys.executable, "-m", "ray.scripts.scripts")
"""Ray's command line; its workers run the Python that it was started with."""
PORT = 6379
STORE = 80_000_000
"""Bytes of each node's object store: about the least that Ray takes."""
HEALTH = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 3}
"""A node that does not answer is given up after some three seconds, not after Ray's thirty."""


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait; return the seconds it took."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - start


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Machine:
    """A network namespace with one end of the cable."""

    def __init__(self, name: str, address: str, environment: dict[str, str]) -> None:
        self.name, self.address, self.cable = name, address, f"v{name}"
        self._environment = environment

    def plug_in(self) -> None:
        """Switch its end of the cable on."""
        _ip("-n", self.name, "link", "set", self.cable, "up")

    def cut_off(self) -> None:
        """Switch its end of the cable off."""
        _ip("-n", self.name, "link", "set", self.cable, "down")

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Start a command on it."""
        whole = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(whole, env=self._environment, **options)

    def run_ray(self, *arguments: str) -> None:
        """Start a node of the cluster with one CPU."""
        command = [*RAY, "start", *arguments, f"--node-ip-address={self.address}"]
        command += ["--num-cpus=1", f"--object-store-memory={STORE}", "--disable-usage-stats"]
        with tempfile.TemporaryFile("w+") as out:
            code = self.start(*command, stdout=out, stderr=subprocess.STDOUT).wait(timeout=90)
            out.seek(0)
            assert code == 0, out.read()

    def kill_all(self) -> None:
        """End all that runs on it."""
        command = ["ip", "netns", "pids", self.name]
        while found := subprocess.run(command, capture_output=True, text=True, check=True).stdout:
            for pid in found.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines, one cable; all that runs on them ends with the block.

    Raises:
        OSError: If namespaces cannot be made here.
    """
    folder = Path(tempfile.mkdtemp(prefix="het", dir="/tmp"))  # sockets' paths must be short
    (folder / "token").write_text(os.urandom(16).hex())
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        **{f"RAY_health_check_{key}": str(value) for key, value in HEALTH.items()},
    }
    names = [f"het{os.getpid()}{letter}" for letter in "ab"]
    here, there = (
        Machine(name, f"198.51.100.{number}", environment) for number, name in enumerate(names, 1)
    )
    made = []
    try:
        for machine in (here, there):
            _ip("netns", "add", machine.name)
            made.append(machine)
            _ip("-n", machine.name, "link", "set", "lo", "up")
        ends = (here.cable, "netns", here.name, "type", "veth", "peer", "name", there.cable)
        _ip("link", "add", *ends, "netns", there.name)
        for machine in (here, there):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", machine.cable)
            machine.plug_in()
        yield here, there
    finally:
        for machine in made:
            machine.kill_all()
            _ip("netns", "del", machine.name)
        shutil.rmtree(folder, ignore_errors=True)
