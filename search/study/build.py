"""Build engine and scorer from a configuration."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedModel

from ...evals.scorer.scorer import Scorer
from ...evals.scorer.threads import choose_threads
from ...evals.tasks.splits import SEARCH
from ...merge.engine.engine import MergeEngine
from ...merge.recipe.methods import METHODS
from ...merge.statistics.cache import default_folder
from ...merge.statistics.parent_statistics import ParentStatistics
from ..evaluate.evaluator import Evaluator
from .parts import Parts, choose_device


def parent_statistics(parts: Parts) -> ParentStatistics:
    """Return the parents' statistics, which depend on no recipe and are mostly cached on disk."""
    return ParentStatistics(parts.parents, default_folder(), choose_device(parts.config))


def build_engine(parts: Parts) -> MergeEngine:
    """Load the base as the resident model."""
    section = parts.config.merge
    return MergeEngine(
        parts.parents,
        dtype=section.dtype,
        device=choose_device(parts.config),
        device_map=section.device_map,
        placement=section.placement,
        compile=section.compile,
        needs=needs(parts),
    )


def needs(parts: Parts) -> frozenset[str]:
    """Return the statistics of the parents that the methods of search and baselines need."""
    searched = (METHODS[name] for stage in parts.stages for name in stage.space.methods)
    baselines = (method for baseline in parts.baselines for method in baseline.recipe.methods)
    return frozenset().union(*(method.needs for method in (*searched, *baselines)))


def make_scorer(parts: Parts, model: PreTrainedModel, *, halved: bool = False) -> Scorer:
    """Tokenise all requests for the resident model.

    Args:
        parts: The parts of the search.
        model: The resident model.
        halved: Whether to score in batches of half the size.
    """
    section, share = parts.config.eval, 2 if halved else 1
    tokens = section.batch_tokens
    return Scorer(
        (*parts.tasks, *parts.guard),
        model,
        parts.tokenizer,
        batch_size=max(section.batch_size // share, 1),
        batch_tokens=tokens and max(tokens // share, 1),
    )


def set_threads(parts: Parts, scorer: Scorer, before: int | None = None) -> int:
    """Set torch's CPU threads and return their number.

    Args:
        parts: The parts of the search.
        scorer: Measures a few requests, for `eval.threads: auto`.
        before: Number in the study's manifest, if it has begun; it comes first.
    """
    threads = before or parts.config.eval.threads
    if threads == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        counts = {1, max((cores or 1) // 2, 1), cores or 1}
        threads = choose_threads(lambda: scorer.rehearse(SEARCH), sorted(counts))
    torch.set_num_threads(int(threads))
    return int(threads)


def build_evaluator(parts: Parts, engine: MergeEngine, scorer: Scorer) -> Evaluator:
    """Return the evaluator; where memory runs out it scores in batches of half the size."""

    def halved() -> Scorer:
        smaller = make_scorer(parts, engine.model, halved=True)
        smaller.path = scorer.path
        return smaller

    return Evaluator(engine, scorer, parts.objective, halved)
