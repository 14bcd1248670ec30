"""The Slurm recipe here: `srun` and `scontrol` are stand-ins, Ray and the search are real."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import psutil
import pytest

from ..processes import SEARCH, wait_for_new_lines
from ..studies import record, run
from .nodes import wait_until

SCRIPT = Path(__file__).parents[3] / "docs/slurm/search.sbatch"
SRUN = """#!/usr/bin/env bash
# What Slurm would run on other machines runs here.
echo "srun $*" >>"$SRUN_LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
STAND_INS = {
    "srun": SRUN,
    "scontrol": "#!/bin/sh\nprintf 'one\\ntwo\\n'\n",
    "hostname": "#!/bin/sh\necho '127.0.0.1 192.0.2.1'\n",
    "ray": f'#!/bin/sh\nexec "{sys.executable}" -m ray.scripts.scripts "$@"\n',
    "heterosis": f'#!/bin/sh\nexec "{sys.executable}" -m heterosis.search "$@"\n',
}


def test_the_script_can_be_read_by_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_nothing_is_found_in_the_script():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_without_a_configuration_it_says_how_it_is_called(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "CONFIG"}
    done = subprocess.run(
        ["bash", str(SCRIPT)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert "CONFIG=search.yaml sbatch search.sbatch" in done.stderr


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a job on two machines, which are both this one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SRUN_LOG": str(tmp_path / "srun.log"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "irrelevant",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def of_job(token: Path) -> list[psutil.Process]:
    """Processes that know the token of a job."""
    found = []
    for process in psutil.process_iter():
        try:
            known = process.environ().get("RAY_AUTH_TOKEN_PATH") == str(token)
            if known and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_job_on_two_machines_is_stopped_and_goes_on_and_leaves_nothing(
    small_search, tmp_path, cluster
):
    pytest.importorskip("ray")
    search = SEARCH | {"trials": 60}
    run(small_search.write(search=search, workers={"engine": "local"}))
    results = tmp_path / "job"
    ray = {"engine": "ray", "num": 2, "gpus_per_worker": 0, "address": "auto"}
    path = small_search.write(search=search, workers=ray, results=str(results))
    token = tmp_path / f".ray-token-{os.getpid()}"

    jobs: list[subprocess.Popen] = []

    def start(out: IO[str]) -> subprocess.Popen:
        environment = cluster | {"CONFIG": str(path)}
        command, both = ["bash", str(SCRIPT)], {"stdout": out, "stderr": subprocess.STDOUT}
        jobs.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **both))
        return jobs[-1]

    log = tmp_path / "job.log"
    try:
        with log.open("w") as out:
            job = start(out)
            wait_for_new_lines(job, results, 12)
            job.terminate()
            assert job.wait(timeout=200) == 130, log.read_text()
        assert "ended early: the same command continues" in log.read_text()
        wait_until(lambda: not of_job(token), 30, "no process of Ray is left")
        with log.open("w") as out:
            assert start(out).wait(timeout=200) == 0, log.read_text()
        assert record(results) == record(small_search.results)
        asked = (tmp_path / "srun.log").read_text().splitlines()
        assert [line.split()[-1] for line in asked] == 2 * ["--ip-address", "--block", "--block"]
        assert "--nodelist=one" in asked[1]
        assert "--exclude=one" in asked[2]
        assert not token.exists()
        wait_until(lambda: not of_job(token), 30, "no process of Ray is left")
    finally:
        for process in (*jobs, *of_job(token)):
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait()
