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
from ...merge.statistics.facts import ParentFacts
from ..evaluate.evaluator import Evaluator
from .parts import Parts, choose_device


def parent_facts(parts: Parts) -> ParentFacts:
    """Return what is known of the parents whatever the recipe; most of it lies in the cache."""
    return ParentFacts(parts.parents, default_folder(), choose_device(parts.config))


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
    """Return what the methods of the search and of its baselines ask of the parents."""
    searched = (METHODS[name] for stage in parts.stages for name in stage.space.methods)
    given = (row for baseline in parts.baselines for row in baseline.recipe.methods)
    return frozenset().union(*(row.needs for row in (*searched, *given)))


def make_scorer(parts: Parts, model: PreTrainedModel, *, halved: bool = False) -> Scorer:
    """Tokenise all requests for a model in memory; in batches of half the size if asked."""
    section, share = parts.config.eval, 2 if halved else 1
    tokens = section.batch_tokens
    return Scorer(
        (*parts.tasks, *parts.guard),
        model,
        parts.tokenizer,
        batch_size=max(section.batch_size // share, 1),
        batch_tokens=tokens and max(tokens // share, 1),
    )


def set_threads(parts: Parts, scorer: Scorer, known: int | None = None) -> int:
    """Set torch's CPU threads: as before, as configured, or as measured on a few requests."""
    wanted = known or parts.config.eval.threads
    if wanted == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        counts = {1, max((cores or 1) // 2, 1), cores or 1}
        wanted = choose_threads(lambda: scorer.rehearse(SEARCH), sorted(counts))
    torch.set_num_threads(int(wanted))
    return int(wanted)


def build_evaluator(parts: Parts, engine: MergeEngine, scorer: Scorer) -> Evaluator:
    """Engine and scorer together; a smaller scorer is made where memory runs out."""

    def halved() -> Scorer:
        smaller = make_scorer(parts, engine.model, halved=True)
        smaller.path = scorer.path
        return smaller

    return Evaluator(engine, scorer, parts.objective, halved)
