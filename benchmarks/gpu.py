"""Load speed on a CUDA device at 7B shapes, as a share of the measured copy bandwidth.

Uses the launcher and plans only; `gpu_scoring.py` measures scoring. Weights are random and created
on the device, so no checkpoint is needed. A load of K parents reads base and parents and writes the
resident weights: (K + 2) times the model's bytes. A copy moves them twice. `gpu.sh` runs it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_scoring import measure_scoring
from heterosis.merge.kernels.launcher import Job, Launcher
from heterosis.merge.recipe.groups import Grouping
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.plans import Plan
from heterosis.merge.recipe.recipe import Recipe, plan_tensor
from torch import Tensor

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 4096, 11008, 32000, 32  # Llama-2-7B: 6.74 G entries
BASE_SCALE, DELTA_SCALE = 0.02, 0.001
MEDIAN = 0.6745  # of |x| for x ~ N(0, 1): half of a delta's entries exceed MEDIAN * DELTA_SCALE
METHODS_MEASURED = ("linear", "dare_linear", "dare_ties", "ties", "della")
PARENTS = ("a", "b")
REPEATS = 5
PIECE = (512, 1024)
"""Shape of the piece that is merged on both devices and compared."""


class NormalStatistics:
    """Statistics of deltas drawn from N(0, DELTA_SCALE**2), at drop rate 0.5."""

    def magnitude(self, parent: str, drop_rate: float) -> float:  # noqa: ARG002
        """Return the median magnitude."""
        assert drop_rate == 0.5
        return MEDIAN * DELTA_SCALE

    def gram(self, parents: Sequence[str]) -> Sequence[Sequence[float]]:
        raise NotImplementedError("no measured method uses it")

    def variance(
        self, parents: Sequence[str], select_topk: float
    ) -> tuple[float, tuple[float, ...]]:
        raise NotImplementedError("no measured method uses it")


@dataclass(frozen=True)
class Model:
    """Resident weights, base, parents and one rank map per tensor, all on the device."""

    out: dict[str, Tensor]
    base: dict[str, Tensor]
    parents: dict[str, tuple[Tensor, ...]]
    ranks: dict[str, Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of one model."""
        return sum(t.numel() * t.element_size() for t in self.out.values())


def tensor_shapes(n_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of Llama-2-7B's tensors."""
    square, up = (HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN)
    layer = {f"self_attn.{k}_proj": square for k in "qkvo"}
    layer |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": up[::-1]}
    layer |= {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(n_layers):
        for name, shape in layer.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def make_model(device: str, n_layers: int) -> Model:
    """Create random weights; the parents of a tensor share its rank map, to save memory."""
    generator = torch.Generator(device).manual_seed(0)
    model = Model({}, {}, {}, {})
    for name, shape in tensor_shapes(n_layers):
        base = torch.randn(shape, generator=generator, device=device) * BASE_SCALE
        deltas = [torch.randn(shape, generator=generator, device=device) for _ in PARENTS]
        model.base[name] = base.bfloat16()
        model.parents[name] = tuple((base + DELTA_SCALE * d).bfloat16() for d in deltas)
        model.out[name] = torch.empty_like(model.base[name])
        codes = torch.randint(0, 256, shape, generator=generator, device=device)
        model.ranks[name] = codes.to(torch.uint8)
    return model


def plans(method: str, names: Sequence[str], weights: Sequence[float]) -> dict[str, Plan]:
    """Return the plan of every tensor, with the same weights in every layer group."""
    recipe = Recipe.uniform(
        method,
        PARENTS,
        Grouping().names(names),
        dict(zip(PARENTS, weights, strict=True)),
        0.5 if METHODS[method].uses_drop_rate else 0.0,
    )
    return {name: plan_tensor(recipe, name, NormalStatistics()) for name in names}


def load(launcher: Launcher, model: Model, plan_of: dict[str, Plan]) -> None:
    """Overwrite every resident tensor."""
    is_ranked = {name: getattr(plan, "keep", "") == "ranked" for name, plan in plan_of.items()}
    launcher.run(
        Job(
            name,
            model.out[name],
            model.base[name],
            model.parents[name],
            plan,
            (model.ranks[name],) * len(PARENTS) if is_ranked[name] else (),
        )
        for name, plan in plan_of.items()
    )


def seconds(run: Callable[[], object], device: str) -> float:
    """Return the median of REPEATS runs after a warm-up, with the device idle before and after."""
    samples = []
    for _ in range(REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[1:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(device: str, n_layers: int) -> dict[str, Any]:
    """Measure the copy bandwidth, and each method's share of it."""
    model, launcher = make_model(device, n_layers), Launcher(compile=True)
    names = list(model.out)

    def copy() -> None:
        for name in names:
            model.out[name].copy_(model.base[name])

    copied = seconds(copy, device)
    bandwidth = 2 * model.n_bytes / copied
    rows = {}
    for method in METHODS_MEASURED:
        plan_of = plans(method, names, (0.5, 0.3))
        start = time.perf_counter()
        load(launcher, model, plan_of)
        _wait(device)
        first = time.perf_counter() - start
        per_load = seconds(lambda plan_of=plan_of: load(launcher, model, plan_of), device)
        rank_bytes = model.n_bytes if method == "della" else 0  # one byte per entry and parent
        moved = (len(PARENTS) + 2) * model.n_bytes + rank_bytes
        rows[method] = {
            "seconds": per_load,
            "first load, seconds": first,
            "copies": per_load / copied,
            "share of copy bandwidth": moved / per_load / bandwidth,
        }
    return {"model bytes": model.n_bytes, "copy bytes per second": bandwidth, "methods": rows}


def corner(model: Model, name: str, device: str) -> Model:
    """Return a piece of one tensor on a device, with float32 output."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[: PIECE[0], : PIECE[1]].contiguous().to(device)

    return Model(
        {name: torch.empty(PIECE, device=device)},
        {name: cut(model.base[name])},
        {name: tuple(map(cut, model.parents[name]))},
        {name: cut(model.ranks[name])},
    )


def differences(device: str) -> dict[str, Any]:
    """Count entries that differ from the CPU's, per method; masks must be equal."""
    model, name = make_model("cpu", 1), "model.layers.0.mlp.up_proj.weight"
    result = {}
    for method in METHODS_MEASURED:
        pieces = [corner(model, name, where) for where in ("cpu", device)]
        for piece in pieces:
            load(Launcher(compile=True), piece, plans(method, [name], (0.5, 0.3)))
        gap = (pieces[0].out[name] - pieces[1].out[name].cpu()).abs()
        result[method] = {
            "entries": gap.numel(),
            "not bit-equal": int((gap != 0).sum()),
            "largest difference": float(gap.max()),
            "masks differ": int((gap > 1e-3 * DELTA_SCALE).sum()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device, found none")
    on_gpu = options.device.startswith("cuda")
    device_name = torch.cuda.get_device_name() if on_gpu else options.device
    today = datetime.datetime.now(datetime.UTC)
    result = {
        "date": today.isoformat(timespec="seconds"),
        "device": device_name,
        "torch": torch.__version__,
        "differences from the CPU": differences(options.device),
        **measure(options.device, options.layers),
        "scoring": measure_scoring(options.device, seconds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{today.date()}-{device_name.replace(' ', '-')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
