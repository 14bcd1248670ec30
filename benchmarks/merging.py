"""Load speed: `MergeEngine.load` in units of one copy of the weights.

Uses the public names of `merge`, and mergekit through `peer`. Every load overwrites every tensor:
loads alternate between two recipes whose coefficients differ in every tensor.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from heterosis.merge.engine.engine import MergeEngine
from heterosis.merge.parents.parent_set import ParentSet
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe
from peer import Peer, find_interpreter
from shapes import LAYERS, make_family
from timing import Row, Seconds, interleave, timed

DROP_RATE = 0.5  # of every method that has one: a mask keeps and drops equally often
WEIGHTS = (0.5, 0.3)  # of alternating parents; swapped in the second recipe
EPSILON = 0.1  # DELLA's window of drop probabilities; mergekit's epsilon is half of it
QUICK_METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")
SHAPE_METHODS = {
    2: ("linear", "slerp", "ties", "dare_linear", "dare_ties", "della"),
    3: ("linear", "ties", "dare_ties"),
    5: ("linear", "ties", "dare_ties"),
}
"""Number of parents K -> methods; SLERP joins two."""
PEER_REPEATS = {"linear": 5, "slerp": 3, "dare_linear": 3, "dare_ties": 3, "ties": 2, "della": 2}
DEPTHS = (LAYERS // 3, LAYERS, 2 * LAYERS)


def recipe(parents: ParentSet, method: str, shift: int) -> Recipe:
    """Return a recipe whose weights differ between parents, and between shift 0 and 1."""
    row = METHODS[method]
    weights = {name: WEIGHTS[(i + shift) % 2] for i, name in enumerate(parents.names)}
    return Recipe.uniform(
        method,
        parents.names,
        parents.groups(),
        weights,
        DROP_RATE if row.uses_drop_rate else 0.0,
        parameters={"epsilon": EPSILON} if "epsilon" in {p.name for p in row.parameters} else {},
    )


def copier(engine: MergeEngine) -> Callable[[], None]:
    """Return a function that copies a clone of the resident model's weights over them."""
    targets = list(engine.model.parameters())  # tied weights once
    sources = [target.detach().clone() for target in targets]

    @torch.no_grad()
    def run() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return run


def loader(engine: MergeEngine, method: str) -> Callable[[], None]:
    """Return a function that loads the next of two recipes that differ in every tensor."""
    recipes = itertools.cycle([recipe(engine.parents, method, shift) for shift in (0, 1)])
    return lambda: void(engine.load(next(recipes)))


def void(_: object) -> None:
    """Discard a result."""


def load_rows(
    engine: MergeEngine, name: str, methods: Sequence[str], repeats: int = 5
) -> Iterator[Row]:
    """Time one engine's loads in units of one copy, per method."""
    copy_weights = copier(engine)
    entries = sum(target.numel() for target in engine.model.parameters())
    for method in methods:
        load = loader(engine, method)
        first = timed(load).wall  # includes compilation and cached statistics
        a, b = interleave(load, copy_weights, repeats)
        note = f"first load {first:.1f} s; {entries / 1e6:.1f} M {engine.model.dtype}"
        yield Row("merge", name, f"load {method}", "copy of weights", a, b, note)


def shape_rows(repeats: int = 5) -> Iterator[Row]:
    """Time loads at SmolLM2-135M's shapes: several K, several depths, and against mergekit."""
    for n_parents, methods in SHAPE_METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = make_family(Path(folder), n_parents)
            engine = open_engine(paths)
            yield from load_rows(engine, f"SmolLM2-135M K={n_parents}", methods, repeats)
            interpreter = find_interpreter()
            if n_parents == 2 and interpreter is not None:
                with closing(Peer(interpreter, paths)) as peer:
                    yield from peer_rows(peer, engine, methods)
            del engine
    for n_layers in DEPTHS:
        with tempfile.TemporaryDirectory() as folder:
            engine = open_engine(make_family(Path(folder), 2, n_layers))
            yield from load_rows(engine, f"{n_layers} layers K=2", ("dare_ties",), repeats)
            del engine


def open_engine(paths: Mapping[str, Path]) -> MergeEngine:
    """Open a bfloat16 engine on the CPU over a family of checkpoints."""
    parents = {name: path for name, path in paths.items() if name != "base"}
    return MergeEngine(ParentSet.open(paths["base"], parents), dtype="bfloat16", device="cpu")


def peer_rows(peer: Peer, engine: MergeEngine, methods: Sequence[str]) -> Iterator[Row]:
    """Time mergekit's merge of the same recipe in units of one load, both on one thread."""
    for method in methods:
        load = loader(engine, method)
        load()
        pairs = []
        for _ in range(PEER_REPEATS[method]):
            theirs = Seconds(*peer.merge(method, *peer_request(engine.parents, method)))
            pairs.append((theirs, median_of(load)))
        a, b = zip(*pairs, strict=True)
        name = f"mergekit {peer.version} {method}"
        yield Row("peer", "SmolLM2-135M K=2", name, f"load {method}", a, b)


def median_of(load: Callable[[], None]) -> Seconds:
    """Return the median of three loads, by wall time."""
    return sorted((timed(load) for _ in range(3)), key=lambda seconds: seconds.wall)[1]


def peer_request(parents: ParentSet, method: str) -> tuple[list[str], dict[str, Any]]:
    """Return mergekit's models (base first) and parameters equivalent to `recipe`."""
    names = list(parents.names)
    weights = dict(zip(names, WEIGHTS, strict=True))
    if method == "slerp":
        return names, {"t": weights[names[1]] / sum(weights.values())}
    if method == "linear":
        share = {"base": 1.0 - sum(weights.values())}
        return ["base", *names], {"weight": weights | share, "normalize": False}
    parameters: dict[str, Any] = {"weight": weights}
    if METHODS[method].uses_drop_rate:
        parameters["density"] = dict.fromkeys(names, 1.0 - DROP_RATE)
    if method == "della":
        parameters["epsilon"] = dict.fromkeys(names, EPSILON / 2)
    return ["base", *names], parameters
