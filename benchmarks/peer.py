"""mergekit's in-process merge, timed in a process and an environment of its own.

Two halves. `Peer` is ours: it starts this file under the interpreter of that environment and asks
it for one merge at a time. The rest runs there and knows mergekit alone: it holds the checkpoints
in memory, merges them as asked and answers with the seconds it took. mergekit is LGPL and no
dependency.
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
"""Names an interpreter whose environment holds mergekit; `make mergekit` makes one."""


def find_interpreter() -> Path | None:
    """The interpreter of mergekit's environment, or None."""
    path = Path(os.environ.get(VARIABLE) or ROOT / ".mergekit" / "bin" / "python")
    return path if path.is_file() else None


class Peer:
    """A running mergekit with a base and parents in memory, on one thread.

    Args:
        interpreter: Of the environment that holds mergekit.
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
        """Merge once, the first model being mergekit's base; seconds on the wall and on the CPU."""
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
    """Answer merges until the input ends; runs where mergekit is."""
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
