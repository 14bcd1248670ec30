"""mergekit's in-memory merge, timed in a separate process and environment.

`Peer` runs in our process: it starts this file with the interpreter of mergekit's environment and
requests one merge at a time. `serve` runs there: it loads the checkpoints once, merges on request
and answers with the seconds taken. mergekit is LGPL, so it is not a dependency.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VARIABLE = "HETEROSIS_MERGEKIT_PYTHON"
"""Environment variable with the path of an interpreter that has mergekit (`make mergekit`)."""


def find_interpreter() -> Path | None:
    """Return the interpreter of mergekit's environment, or None."""
    path = Path(os.environ.get(VARIABLE) or ROOT / ".mergekit" / "bin" / "python")
    return path if path.is_file() else None


class Peer:
    """A mergekit process with base and parents in memory, on one thread.

    Args:
        interpreter: Python of mergekit's environment.
        paths: Name -> directory with one model.safetensors; "base" first.
    """

    def __init__(self, interpreter: Path, paths: Mapping[str, Path]) -> None:
        files = {name: str(path / "model.safetensors") for name, path in paths.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [interpreter, __file__, json.dumps(files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.version = self._answer()["version"]

    def merge(
        self, method: str, models: Sequence[str], parameters: Mapping[str, Any]
    ) -> tuple[float, float]:
        """Merge once, with the first model as base; return wall and CPU seconds."""
        assert self._process.stdin is not None
        request = {"method": method, "models": list(models), "parameters": dict(parameters)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["wall"], answer["cpu"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"mergekit ended with exit code {self._process.wait()}")
        return json.loads(line)


def serve(files: Mapping[str, str]) -> None:
    """Answer merge requests until the input ends; runs in mergekit's environment."""
    from importlib.metadata import version

    import torch
    from mergekit.merge_methods import merge_state_dicts  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    models = {name: load_file(path) for name, path in files.items()}
    _answer({"version": version("mergekit")})
    for line in sys.stdin:
        request = json.loads(line)
        torch.manual_seed(0)
        wall, cpu = time.perf_counter(), time.process_time()
        merge_state_dicts(
            {name: models[name] for name in request["models"]},
            request["method"],
            base=request["models"][0],
            parameters=request["parameters"],
            dtype=torch.bfloat16,
        )
        _answer({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})


def _answer(values: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
