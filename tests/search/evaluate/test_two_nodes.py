"""A search on two Ray nodes: one is cut off while it scores, and comes back as a new one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..processes import lines_of
from ..studies import record, run
from .nodes import PORT, two_machines, wait_until

SCRIPT = Path(__file__).with_name("slow_script.py")
SLEEP = 1.0
"""Seconds that each candidate takes besides its scoring, until all has happened."""
LONG = 150
"""Seconds that a process may take to come up where the machine is busy."""
SEARCH = {
    "trials": 90,
    "racing": {"first": 10, "alpha": 0.3},
    "sampler_args": {"popsize": 8},
}
BEGUN = re.compile(r"candidate (\d+): begun on \S+ \((\S+)\)")
DIED = re.compile(r"candidate (\d+): its worker on \S+ \((\S+)\) died")


@pytest.fixture
def machines():
    pytest.importorskip("ray")
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here: install iproute2")
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root alone")
    around = two_machines()
    try:
        found = around.__enter__()
    except OSError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        yield found
    finally:
        around.__exit__(None, None, None)


class Log:
    """What the driver has said so far."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def text(self) -> str:
        return self._path.read_text()

    def begun(self) -> list[tuple[int, str]]:
        return [(int(number), place) for number, place in BEGUN.findall(self.text)]

    def begun_on(self, place: str) -> list[int]:
        return [number for number, at in self.begun() if at == place]

    def died(self) -> list[tuple[int, str]]:
        return [(int(number), place) for number, place in DIED.findall(self.text)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_that_is_cut_off_and_one_that_joins(machines, small_search, tmp_path):
    here, there = machines
    outcome, _ = run(small_search.write(search=SEARCH, workers={"engine": "local"}))
    assert outcome.finished
    here.run_ray("--head", f"--port={PORT}", "--include-dashboard=false")
    head = f"{here.address}:{PORT}"
    there.run_ray(f"--address={head}")
    ray = {"engine": "ray", "num": 2, "gpus_per_worker": 0, "address": head}
    results, hurry = tmp_path / "two", tmp_path / "hurry"
    path = small_search.write(search=SEARCH, workers=ray, results=str(results))
    log = Log(tmp_path / "log")
    command = (sys.executable, str(SCRIPT), str(SLEEP), str(hurry), "-v", "search", str(path))
    with (tmp_path / "log").open("w") as out:
        search = here.start(*command, stdout=out, stderr=subprocess.STDOUT)

    def has_begun(place: str, count: int) -> bool:
        assert search.poll() is None, log.text
        return len(log.begun_on(place)) >= count

    wait_until(lambda: has_begun(here.address, 2), LONG, "the driver's node scores")
    wait_until(lambda: has_begun(there.address, 2), LONG, "the other node scores")
    there.cut_off()
    in_flight, kept = log.begun_on(there.address)[-1], lines_of(results)
    wait_until(lambda: bool(log.died()), 30, "the node is given up")
    assert log.died() == [(in_flight, there.address)]
    wait_until(lambda: lines_of(results) > kept + 2, 60, "the search goes on")
    assert (in_flight, here.address) in log.begun(), "it was not begun anew"

    there.kill_all()
    there.plug_in()
    before = len(log.begun_on(there.address))
    there.run_ray(f"--address={head}")
    wait_until(lambda: has_begun(there.address, before + 2), LONG, "a node that joins scores")
    hurry.touch()
    assert search.wait(timeout=LONG) == 0, log.text
    assert record(results) == record(small_search.results)
    assert len(log.begun()) == SEARCH["trials"] + 1
