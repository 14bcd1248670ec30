"""Scoring paths for log-likelihoods, and the check that chooses one. Knows torch and HFLM.

Three paths give equal scores: ``packed``, the fastest, for models whose attention allows it;
``flat``, one request per row; ``hflm``, lm-eval's own loop. `choose_path` compares the first two
with the third on the model, and takes the first that agrees.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..quiet import one_line
from .architecture import longest_packed, why_not_packed
from .batches import Limits, LogLikelihoods, Plan, Request, score_tokens, spread_picks
from .flat import flat_logits, plan_flat, rehearse_flat, run_flat
from .packed import (
    ROW_TOKENS,
    Caches,
    packed_logits,
    plan_packed,
    rehearse_packed,
    run_packed,
    task_prefixes,
)
from .packing import Row

log = logging.getLogger(__name__)
PACKED, FLAT, HFLM = "packed", "flat", "hflm"
# Largest difference per scored token, in nats, between correct paths: batches of another shape sum
# in another order. Observed in float32: 1e-5; in 16 bit, one unit in the last place of a logit near
# 16 is 0.06 (bfloat16) or 0.008 (float16). A wrong mask or a missing soft-cap gives 0.1 to 10.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.12}
_SIBLINGS = 4  # most requests per context in a sample, so that it is packed like the whole


@dataclass(frozen=True)
class PathReport:
    """Path in use, the reason, and its largest difference from HFLM (nats per scored token)."""

    path: str
    reason: str
    max_difference: float


def limits_of(lm: Any, batch_size: int, batch_tokens: int | None) -> Limits:
    """Return the limits of an HFLM's model; ``batch_tokens`` None: from ``batch_size``."""
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
    """Log-likelihood requests that every candidate is scored on; each path is planned once.

    Args:
        requests: Token ids.
        tasks: Task of each request; prefixes are shared within a task.
        limits: Limits of the model.
        prefixes: Prefix of each task; None: those that these requests share.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tasks: Sequence[int],
        limits: Limits,
        prefixes: dict[int, Row] | None = None,
    ) -> None:
        """Keep the requests; plans are made when needed."""
        self.requests, self.tasks, self.limits = tuple(requests), tuple(tasks), limits
        self._prefixes = prefixes
        self._plans: dict[str, Plan] = {}

    @property
    def prefixes(self) -> dict[int, Row]:
        """Prefix of each task that has one."""
        if self._prefixes is None:
            self._prefixes = task_prefixes(self.requests, self.tasks, self.limits)
        return self._prefixes

    def plan(self, path: str) -> Plan:
        """Return the batches of the packed or flat path, the same ones at every call."""
        if path not in self._plans:
            self._plans[path] = (
                plan_packed(self.requests, self.tasks, self.prefixes, self.limits)
                if path == PACKED
                else plan_flat(self.requests, self.limits)
            )
        return self._plans[path]

    def run(self, path: str, lm: Any, caches: Caches | None = None) -> LogLikelihoods:
        """Score every request with the current weights of an HFLM's model."""
        if path == HFLM:
            return _run_hflm(lm, self.requests)
        if path == FLAT:
            return run_flat(lm.model, self.plan(FLAT))
        return run_packed(lm.model, self.plan(PACKED), caches)

    def differentiable(
        self, path: str, model: Any
    ) -> tuple[Float[torch.Tensor, " R"], Float[torch.Tensor, " R"]]:
        """Score every request with autograd; the requests must have no shared prefixes.

        Args:
            path: PACKED or FLAT; lm-eval's own loop keeps no gradients, and becomes FLAT.
            model: The model, on the limits' device.

        Returns:
            Log-likelihoods (R,), float32 with a gradient, and the number of tokens of each
            continuation that greedy decoding would miss (R,).
        """
        plan = self.plan(PACKED if path == PACKED else FLAT)
        assert not plan.prefixes
        scored = [
            score_tokens(
                packed_logits(model, batch, ()) if path == PACKED else flat_logits(model, batch),
                batch,
            )
            for batch in plan.batches
        ]
        tokens = torch.cat(scored, dim=1)  # (3, E)
        request_of = torch.as_tensor(plan.request_of, device=tokens.device)
        zeros = tokens.new_zeros(plan.n_requests)
        misses = zeros.index_add(0, request_of, tokens[1].detach())
        return zeros.index_add(0, request_of, tokens[0]), misses

    def rehearse(self, path: str, lm: Any, batches: int) -> None:
        """Run a few batches and discard the results."""
        rehearse = rehearse_packed if path == PACKED else rehearse_flat
        rehearse(lm.model, self.plan(PACKED if path == PACKED else FLAT), batches)


def _run_hflm(lm: Any, requests: Sequence[Request]) -> LogLikelihoods:
    """Score requests with lm-eval's own loop, which returns no gaps: nan."""
    encoded = [(None, list(r.context), list(r.continuation)) for r in requests]
    responses = lm._loglikelihood_tokens(encoded, disable_tqdm=True)
    lls = np.array([ll for ll, _ in responses], dtype=np.float64)
    greedy = np.array([flag for _, flag in responses], dtype=np.bool_)
    return LogLikelihoods(lls, greedy, np.full(len(requests), np.nan))


def _sample(requests: Sequence[Request], tasks: Sequence[int], n: int) -> list[int]:
    """Return up to ``n`` requests, shortest to longest context, with others of the same context."""
    contexts: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    first = {request: index for index, request in reversed(list(enumerate(requests)))}
    for index in first.values():
        contexts.setdefault((tasks[index], requests[index].context), []).append(index)
    ordered = sorted(contexts, key=lambda key: (len(key[1]), key))
    siblings = [sorted(contexts[key])[:_SIBLINGS] for key in ordered]
    n_contexts = max(1, round(n * len(siblings) / max(sum(map(len, siblings)), 1)))
    return [index for i in spread_picks(len(siblings), n_contexts) for index in siblings[i]][:n]


def choose_path(
    lm: Any, requests: Sequence[Request], tasks: Sequence[int], limits: Limits, n: int
) -> PathReport:
    """Compare the packed and the flat path with HFLM, and return the first that agrees.

    Args:
        lm: An HFLM around the model.
        requests: At least one request.
        tasks: Task of each request.
        limits: Limits of the model.
        n: Most requests to compare on.
    """
    picks = _sample(requests, tasks, n)
    some = LikelihoodRequests([requests[i] for i in picks], [tasks[i] for i in picks], limits)
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
    """Report ``path`` if it agrees with HFLM, else HFLM and the reason."""
    if path == PACKED and (reason := why_not_packed(lm.model)):
        return PathReport(HFLM, reason, float("nan"))
    try:
        result = some.run(path, lm)
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"the model's forward refuses it: {one_line(error)}"
        return PathReport(HFLM, reason, float("inf"))
    return agreement(path, lm.model.dtype, some.requests, result, expected)


def agreement(
    path: str,
    dtype: torch.dtype,
    requests: Sequence[Request],
    result: LogLikelihoods,
    expected: LogLikelihoods,
) -> PathReport:
    """Compare log-likelihoods; greedy flags may differ only at near ties of two tokens."""
    tolerance = _TOLERANCE.get(dtype, 1e-3)
    lengths = np.array([len(request.continuation) for request in requests])
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(result.lls - expected.lls) / lengths, nan=np.inf)
    worst = float(off.max())
    if worst > tolerance:
        reason = f"log-likelihoods differ by {worst:.2g} nats per token, above {tolerance:g}"
        return PathReport(HFLM, reason, worst)
    flips = int(((result.greedy != expected.greedy) & (result.gaps > 2 * tolerance)).sum())
    flips += int((result.greedy & ~expected.greedy & (tolerance <= 1e-3)).sum())
    if flips:
        reason = f"{flips} of {len(requests)} greedy flags differ"
        return PathReport(HFLM, reason, worst)
    return PathReport(path, f"equal to HFLM on {len(requests)} requests", worst)
