"""The ways to score log-likelihoods, and the check that chooses one. Knows torch and HFLM.

Three paths give the same answers: ``packed``, the fastest, for models whose attention allows it;
``flat``, one request a row; ``hflm``, lm-eval's own loop. `choose_path` compares the first two with
the third on the model at hand and takes the first that agrees.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .architecture import longest_packed, why_not_packed
from .batches import LogLikelihoods, Plan, Request, spread_picks
from .flat import plan_flat, rehearse_flat, run_flat
from .packed import ROW_TOKENS, Caches, plan_packed, rehearse_packed, run_packed, task_prefixes
from .packing import Row

log = logging.getLogger(__name__)
PACKED, FLAT, HFLM = "packed", "flat", "hflm"
# Largest difference per scored token, in nats, between two right ways to score: batches of another
# shape sum in another order. Float32: 1e-5 seen; 16 bit: one unit in the last place of a logit
# near 16 is 0.06 (bfloat16) or 0.008 (float16). A wrong mask or a lost soft-cap gives 0.1 to 10.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.12}
_SIBLINGS = 4  # requests of one context in a sample, so that packing is tried as it will be used


@dataclass(frozen=True)
class PathReport:
    """Which loop scores, why, and how far apart it and HFLM were (nats per scored token)."""

    path: str
    reason: str
    max_difference: float


@dataclass(frozen=True)
class Limits:
    """What bounds the batches of one model.

    Attributes:
        batch_size: Most rows per forward pass of the flat path.
        batch_tokens: Most tokens per forward pass of the packed path.
        max_length: Longest input in tokens.
        longest_packed: Longest input that may be packed.
        vocabulary: Logits per position.
        device: Where the model is.
    """

    batch_size: int
    batch_tokens: int
    max_length: int
    longest_packed: int
    vocabulary: int
    device: torch.device


def limits_of(lm: Any, batch_size: int, batch_tokens: int | None) -> Limits:
    """Limits of an HFLM's model; ``batch_tokens`` follows from ``batch_size`` if it is None."""
    model = lm.model
    return Limits(
        batch_size=batch_size,
        batch_tokens=batch_tokens or batch_size * ROW_TOKENS,
        max_length=lm.max_length,
        longest_packed=longest_packed(model),
        vocabulary=int(model.config.get_text_config(decoder=True).vocab_size),
        device=lm.device,
    )


class LikelihoodRequests:
    """Requests whose log-likelihoods are asked for again and again; plans are made when needed.

    Args:
        requests: Token ids.
        tasks: Which task each belongs to; prefixes are shared within a task.
        limits: Of the model.
        prefixes: Of each task; None: those that these requests share.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tasks: Sequence[int],
        limits: Limits,
        prefixes: dict[int, Row] | None = None,
    ) -> None:
        """Remember what to plan; see the class."""
        self.requests, self.tasks, self.limits = tuple(requests), tuple(tasks), limits
        self._prefixes = prefixes
        self._plans: dict[str, Plan] = {}

    @property
    def prefixes(self) -> dict[int, Row]:
        """Prefix of each task that has one."""
        if self._prefixes is None:
            self._prefixes = task_prefixes(
                self.requests,
                self.tasks,
                max_length=self.limits.max_length,
                longest_packed=self.limits.longest_packed,
            )
        return self._prefixes

    def plan(self, path: str) -> Plan:
        """Batches of the packed or flat path; the same ones at every call."""
        if path not in self._plans:
            self._plans[path] = self._packed() if path == PACKED else self._flat()
        return self._plans[path]

    def _packed(self) -> Plan:
        return plan_packed(
            self.requests,
            self.tasks,
            prefixes=self.prefixes,
            batch_tokens=self.limits.batch_tokens,
            max_length=self.limits.max_length,
            longest_packed=self.limits.longest_packed,
            vocabulary=self.limits.vocabulary,
            device=self.limits.device,
        )

    def _flat(self) -> Plan:
        return plan_flat(
            self.requests,
            batch_size=self.limits.batch_size,
            max_length=self.limits.max_length,
            vocabulary=self.limits.vocabulary,
            device=self.limits.device,
        )

    def run(self, path: str, lm: Any, caches: Caches | None = None) -> LogLikelihoods:
        """Score every request with the weights the model of an HFLM now holds."""
        if path == HFLM:
            return _run_hflm(lm, self.requests)
        if path == FLAT:
            return run_flat(lm.model, self.plan(FLAT))
        return run_packed(lm.model, self.plan(PACKED), caches)

    def rehearse(self, path: str, lm: Any, batches: int) -> None:
        """Run a few batches and forget the answers."""
        rehearse = rehearse_packed if path == PACKED else rehearse_flat
        rehearse(lm.model, self.plan(PACKED if path == PACKED else FLAT), batches)


def _run_hflm(lm: Any, requests: Sequence[Request]) -> LogLikelihoods:
    """Score requests with lm-eval's own loop, which tells no gaps."""
    encoded = [(None, list(r.context), list(r.continuation)) for r in requests]
    found = lm._loglikelihood_tokens(encoded, disable_tqdm=True)
    lls = np.array([ll for ll, _ in found], dtype=np.float64)
    greedy = np.array([flag for _, flag in found], dtype=np.bool_)
    return LogLikelihoods(lls, greedy, np.full(len(requests), np.nan))


def sample(requests: Sequence[Request], tasks: Sequence[int], n: int) -> list[int]:
    """Up to ``n`` requests from shortest to longest context, with siblings of the same context."""
    contexts: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    first = {request: index for index, request in reversed(list(enumerate(requests)))}
    for index in first.values():
        contexts.setdefault((tasks[index], requests[index].context), []).append(index)
    ordered = sorted(contexts, key=lambda key: (len(key[1]), key))
    own = [sorted(contexts[key])[:_SIBLINGS] for key in ordered]
    enough = max(1, round(n * len(own) / max(sum(map(len, own)), 1)))
    return [index for i in spread_picks(len(own), enough) for index in own[i]][:n]


def choose_path(lm: Any, some: LikelihoodRequests) -> PathReport:
    """Compare the packed and the flat path with HFLM, and take the first that agrees.

    Args:
        lm: HFLM around the model.
        some: The requests to compare on, such as a `sample`.
    """
    expected = some.run(HFLM, lm)
    refused = []
    for path in (PACKED, FLAT):
        report = _compare(path, lm, some, expected)
        if report.path == path:
            return PathReport(path, "; ".join([report.reason, *refused]), report.max_difference)
        log.log(
            logging.INFO if np.isnan(report.max_difference) else logging.WARNING,
            "the %s path is not used: %s",
            path,
            report.reason,
        )
        refused.append(f"not {path}: {report.reason}")
    log.warning("scoring with lm-eval's own loop, which is slower: %s", "; ".join(refused))
    return PathReport(HFLM, "; ".join(refused), report.max_difference)


def _compare(path: str, lm: Any, some: LikelihoodRequests, expected: LogLikelihoods) -> PathReport:
    """Report ``path`` if it agrees with what HFLM gave, else HFLM's and the reason."""
    if path == PACKED and (reason := why_not_packed(lm.model)):
        return PathReport(HFLM, reason, float("nan"))
    try:
        found = some.run(path, lm)
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"the model's forward refuses it: {' '.join(str(error).split())}"
        return PathReport(HFLM, reason, float("inf"))
    return agreement(path, lm.model.dtype, some.requests, found, expected)


def agreement(
    path: str,
    dtype: torch.dtype,
    requests: Sequence[Request],
    found: LogLikelihoods,
    expected: LogLikelihoods,
) -> PathReport:
    """Compare answers; greedy flags may differ only where two tokens are almost equally likely."""
    tolerance = _TOLERANCE.get(dtype, 1e-3)
    lengths = np.array([len(request.continuation) for request in requests])
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(found.lls - expected.lls) / lengths, nan=np.inf)
    worst = float(off.max())
    if worst > tolerance:
        reason = f"log-likelihoods differ by {worst:.2g} nats per token, above {tolerance:g}"
        return PathReport(HFLM, reason, worst)
    flips = int(((found.greedy != expected.greedy) & (found.gaps > 2 * tolerance)).sum())
    flips += int((found.greedy & ~expected.greedy & (tolerance <= 1e-3)).sum())
    if flips:
        reason = f"{flips} of {len(requests)} greedy flags differ"
        return PathReport(HFLM, reason, worst)
    return PathReport(path, f"equal to HFLM on {len(requests)} requests", worst)
