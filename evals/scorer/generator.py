"""Generate answers by the fastest loop that agrees with lm-eval's HFLM. Knows HFLM.

There are three paths: ``prefix`` (the loop of `heterosis.evals.scorer.decoding`, common prefixes
computed once), ``batched`` (the same loop without prefixes) and ``hflm`` (its own loop).
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..quiet import one_line
from ..scores.scores import NonFiniteScore
from .batches import spread_picks
from .decoding import (
    NonFiniteLogit,
    PromptGroup,
    encode_prompt,
    first_seen,
    penalised,
    plan_groups,
    run_group,
    settings_of,
    unusable_cache,
)
from .scoring_paths import HFLM, PathReport
from .stopping import Answer, StopRule, stop_rule

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)
PREFIX, BATCHED = "prefix", "batched"
# Longest answers that `Generator.check` compares, tokens.
_CHECKED_TOKENS = 32
# Largest gap, in nats, between the best two logits that another order of summation may reverse.
_TIE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}


class Generator:
    """Answers of the resident model to generation requests.

    Args:
        lm: An HFLM around the model.
        batch_size: Rows per forward pass, the same for every candidate.

    Attributes:
        report: Path in use, the reason, and the widest tie (nats) that it and HFLM broke
            differently; `check` may change it.
    """

    def __init__(self, lm: Any, batch_size: int) -> None:
        """Check the model's cache; see the class."""
        self._lm, self._batch_size = lm, batch_size
        self._plans: dict[tuple[int, ...], tuple[PromptGroup, ...]] = {}
        self._planned: list[Sequence[Instance]] = []  # kept alive, so that no id is reused
        reason = unusable_cache(lm.model)
        path = HFLM if reason else PREFIX
        self.report = PathReport(path, reason or "not compared with HFLM", 0.0)

    def plan(self, instances: "Sequence[Instance]") -> tuple[PromptGroup, ...]:
        """Encode and batch requests; the plan is cached.

        Raises:
            TaskError: If a prompt has no token.
        """
        key = tuple(map(id, instances))
        if key not in self._plans:
            self._plans[key] = self._plan(instances, self.report.path)
            self._planned.append(instances)
        return self._plans[key]

    def answers(self, instances: "Sequence[Instance]") -> list[Answer]:
        """Answer requests with the current weights of the model.

        Raises:
            NonFiniteScore: If a logit is NaN or infinite; not on the ``hflm`` path.
        """
        return self._run(instances, self.plan(instances), self.report.path)

    def rehearse(self, instances: "Sequence[Instance]") -> None:
        """Answer one batch and discard the answers; for timing."""
        batch = list(instances[: self._batch_size])
        self._run(batch, self._plan(batch, self.report.path), self.report.path)

    def check(self, instances: "Sequence[Instance]", n: int = 6) -> PathReport:
        """Compare with HFLM, one prompt at a time, on up to ``n`` requests, and choose a path.

        Answers of up to 32 tokens must be equal, except where the model's best two logits are so
        close that another order of summation may reverse them.
        """
        sample = [_shortened(self._lm, i) for i in _spread(instances, n)]
        sample = [i for i in sample if not stop_rule(self._lm, settings_of(i)).unsupported]
        before = self.report.path
        if before == HFLM or not sample:
            return self.report
        expected = self._run(sample, self._plan(sample, HFLM, batch_size=1), HFLM)
        report = self._compare(sample, expected, PREFIX)
        if report.path == HFLM:  # the prefix path is refused: try the loop without prefixes
            refusal = report.reason
            report = self._compare(sample, expected, BATCHED)
            if report.path == BATCHED:
                report = replace(report, reason=f"{report.reason}; {refusal}")
            else:
                reason = report.reason
                log.warning("generating with lm-eval's own loop, which is slower: %s", reason)
        if report.path != before:  # plans depend on the path
            self._plans.clear()
            self._planned.clear()
        self.report = report
        return report

    def _plan(
        self, instances: "Sequence[Instance]", path: str, batch_size: int | None = None
    ) -> tuple[PromptGroup, ...]:
        return plan_groups(
            self._lm, instances, batch_size=batch_size or self._batch_size, shared=path == PREFIX
        )

    def _run(
        self, instances: "Sequence[Instance]", groups: Sequence[PromptGroup], path: str
    ) -> list[Answer]:
        """Return the answers in the order of ``instances``."""
        answers: dict[int, Answer] = {}
        for group in groups:
            if path == HFLM or group.rule.unsupported:
                answers |= _run_hflm(self._lm, group, instances)
            else:
                answers |= _run_loop(self._lm, group, instances)
        return [answers[row] for row in range(len(instances))]

    def _compare(
        self, instances: "Sequence[Instance]", expected: Sequence[Answer], path: str
    ) -> PathReport:
        """Report ``path`` if its answers agree with those of HFLM, else HFLM and the reason."""
        try:
            groups = self._plan(instances, path)
            answers = self._run(instances, groups, path)
        except (TypeError, ValueError, NotImplementedError, AttributeError, IndexError) as error:
            reason = f"the model's forward refuses the loop: {one_line(error)}"
            return PathReport(HFLM, reason, 0.0)
        except NonFiniteScore as error:
            return PathReport(HFLM, str(error), 0.0)
        rules = {row: g.rule for g in groups for batch in g.batches for row in batch.rows}
        ties = [
            _tie(self._lm, instances[i], rules[i], a, b)
            for i, (a, b) in enumerate(zip(answers, expected, strict=True))
            if a.text != b.text
        ]
        widest = max(ties, default=0.0)
        if widest > _TIE.get(self._lm.model.dtype, 1e-3):
            different = f"{len(ties)} of {len(expected)} texts differ from HFLM's"
            return PathReport(HFLM, f"{different}, by up to {widest:.2g} nats", widest)
        same = f"equal to HFLM on {len(expected)} prompts"
        tied = f", {len(ties)} of them up to a tie" if ties else ""
        return PathReport(path, same + tied, widest)


def _spread(instances: "Sequence[Instance]", n: int) -> "list[Instance]":
    """Return up to n requests, evenly from the shortest prompt to the longest."""
    by_length = sorted(instances, key=lambda instance: len(instance.args[0]))
    return [by_length[place] for place in spread_picks(len(by_length), n)]


def _shortened(lm: Any, instance: "Instance") -> "Instance":
    """Return a copy of a request with a lower token limit."""
    from lm_eval.models.utils import normalize_gen_kwargs

    asked: dict[str, Any] = dict(normalize_gen_kwargs(settings_of(instance), lm.max_gen_toks))
    asked["max_gen_toks"] = min(asked["max_gen_toks"], _CHECKED_TOKENS)
    short = copy.copy(instance)
    short.arguments = (instance.args[0], asked)
    return short


def _run_loop(lm: Any, group: PromptGroup, instances: "Sequence[Instance]") -> dict[int, Answer]:
    """Return the answers of a group by our loop: index of the request -> answer."""
    try:
        return {row: group.rule.answer(lm, tokens) for row, tokens in run_group(lm, group)}
    except NonFiniteLogit as error:
        instance = instances[error.row]
        name, row = str(instance.task_name), int(instance.doc_id or 0)
        raise NonFiniteScore(name, row, "logit", error.value) from error


def _run_hflm(lm: Any, group: PromptGroup, instances: "Sequence[Instance]") -> dict[int, Answer]:
    """Return the answers of a group by HFLM's own loop: index of the request -> answer."""
    answers: dict[int, Answer] = {}
    recorder = _recorder(lm, max(len(batch.rows) for batch in group.batches))
    for batch in group.batches:
        texts = recorder.generate_until([instances[row] for row in batch.rows], disable_tqdm=True)
        for row, text, written in zip(batch.rows, texts, recorder.written, strict=True):
            answer = group.rule.answer(lm, group.rule.cut(lm, written))
            answers[row] = Answer(text, answer.tokens, answer.is_truncated)
    return answers


def _recorder(lm: Any, batch_size: int) -> Any:
    """Return an HFLM around the same model that keeps the tokens (B, T) it wrote last."""
    from lm_eval.models import huggingface

    hflm: Any = huggingface.HFLM  # its decorator hides the signature from pyright

    class Recorder(hflm):
        written: list[list[int]]

        def _model_generate(self, context: Any, **rest: Any) -> Any:
            ids = super()._model_generate(context=context, **rest)
            self.written = ids[:, context.shape[1] :].tolist()
            return ids

    return Recorder(
        pretrained=lm.model, tokenizer=lm.tokenizer, backend="causal", batch_size=batch_size
    )


def _tie(lm: Any, instance: "Instance", rule: StopRule, ours: Answer, theirs: Answer) -> float:
    """Return the nats between the first two tokens that differ; infinite if none do."""
    pairs = enumerate(zip(ours.tokens, theirs.tokens, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), None)
    if place is None:
        return float("inf")
    ids = torch.tensor([[*encode_prompt(lm, instance, rule), *ours.tokens[:place]]])
    ids = ids.to(lm.device)
    with torch.no_grad():
        logits = lm.model(input_ids=ids, use_cache=False).logits[:, -1].float()  # (1, V)
    scores = penalised(logits, first_seen(lm, rule, ids), rule.repetition_penalty)[0]
    return float((scores[ours.tokens[place]] - scores[theirs.tokens[place]]).abs())
