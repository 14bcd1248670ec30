"""Chooses how a model's answers are generated, and certifies the choice. Knows lm-eval's HFLM.

Three paths: "prefix" (the loop of `heterosis.evals.scorer.decoding`, common prefix computed once),
"batched" (the same loop, every prompt whole) and "hflm" (lm-eval's own ``generate_until``).
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..scores.scores import NonFiniteScore
from .batches import spread_picks
from .decoding import (
    Group,
    NonFiniteLogit,
    encode_prompt,
    first_seen,
    penalised,
    plan_groups,
    run_group,
    settings_of,
    unusable_cache,
)
from .stopping import Answer, StopRule, stop_rule

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)
PREFIX, BATCHED, HFLM = "prefix", "batched", "hflm"
# Longest answers that the self-check compares, tokens.
_CHECKED_TOKENS = 32
# Largest gap, in nats, between the best two logits that another summation order may turn round.
_TIE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}


@dataclass(frozen=True)
class Choice:
    """Which path generates, why, and the widest tie (nats) that it decided otherwise than HFLM."""

    path: str
    reason: str
    widest_tie: float = 0.0


class Generator:
    """LogLikelihoods generation requests with one resident model.

    Args:
        lm: An HFLM around the model.
        batch_size: Rows per forward pass, the same for every candidate.

    Attributes:
        choice: The path taken, and why; `check` may change it.
    """

    def __init__(self, lm: Any, batch_size: int) -> None:
        """Look at the kind of the model's cache; see the class."""
        self._lm, self._batch_size = lm, batch_size
        self._plans: dict[tuple[int, ...], tuple[Group, ...]] = {}
        self._planned: list[Sequence[Instance]] = []  # keeps ids of instances theirs
        reason = unusable_cache(lm.model)
        self.choice = Choice(HFLM, reason) if reason else Choice(PREFIX, "not compared with HFLM")

    def plan(self, instances: "Sequence[Instance]") -> tuple[Group, ...]:
        """Encode and batch requests, the first time they are given.

        Raises:
            TaskError: If a prompt has no token.
        """
        key = tuple(map(id, instances))
        if key not in self._plans:
            self._plans[key] = self._plan(instances, self.choice.path)
            self._planned.append(instances)
        return self._plans[key]

    def answers(self, instances: "Sequence[Instance]") -> list[Answer]:
        """Answer requests with the weights that the model now holds.

        Raises:
            NonFiniteScore: If a logit is NaN or infinite; not on the "hflm" path.
        """
        return self._run(instances, self.plan(instances), self.choice.path)

    def rehearse(self, instances: "Sequence[Instance]") -> None:
        """Answer one batch and forget the answers; for timing."""
        some = list(instances[: self._batch_size])
        self._run(some, self._plan(some, self.choice.path), self.choice.path)

    def check(self, instances: "Sequence[Instance]", n: int = 6) -> Choice:
        """Compare with HFLM, one prompt at a time, on up to ``n`` requests, and choose a path.

        Answers of up to 32 tokens must be the same, but where the model's best two tokens lie
        closer together than another order of summation moves them.
        """
        some = [_shortened(self._lm, i) for i in _spread(instances, n)]
        some = [i for i in some if not stop_rule(self._lm, settings_of(i)).unsupported]
        if self.choice.path == HFLM or not some:
            return self.choice
        expected = self._run(some, self._plan(some, HFLM, batch_size=1), HFLM)
        reasons = []
        for path in (PREFIX, BATCHED):
            choice = self._compare(some, expected, path)
            if choice.path == path:
                break
            reasons.append(choice.reason)
        else:
            log.warning("generating with lm-eval's own loop, which is slower: %s", choice.reason)
        if choice.path != self.choice.path:
            self._plans.clear()
            self._planned.clear()
        reason = "; ".join([choice.reason, *reasons[:1]]) if choice.path == BATCHED else None
        self.choice = Choice(choice.path, reason or choice.reason, choice.widest_tie)
        return self.choice

    def _plan(
        self, instances: "Sequence[Instance]", path: str, batch_size: int | None = None
    ) -> tuple[Group, ...]:
        return plan_groups(
            self._lm, instances, batch_size=batch_size or self._batch_size, shared=path == PREFIX
        )

    def _run(
        self, instances: "Sequence[Instance]", groups: Sequence[Group], path: str
    ) -> list[Answer]:
        """Answers in the order of ``instances``."""
        answers: dict[int, Answer] = {}
        for group in groups:
            if path == HFLM or group.rule.unsupported:
                answers |= _run_hflm(self._lm, group, instances)
            else:
                answers |= _run_loop(self._lm, group, instances)
        return [answers[row] for row in range(len(instances))]

    def _compare(
        self, instances: "Sequence[Instance]", expected: Sequence[Answer], path: str
    ) -> Choice:
        """Answer by a path and say whether it may be taken."""
        try:
            groups = self._plan(instances, path)
            found = self._run(instances, groups, path)
        except (TypeError, ValueError, NotImplementedError, AttributeError, IndexError) as error:
            reason = f"the model's forward refuses the loop: {' '.join(str(error).split())}"
            return Choice(HFLM, reason)
        except NonFiniteScore as error:
            return Choice(HFLM, str(error))
        rules = {row: g.rule for g in groups for batch in g.batches for row in batch.rows}
        ties = [
            _tie(self._lm, instances[i], rules[i], a, b)
            for i, (a, b) in enumerate(zip(found, expected, strict=True))
            if a.text != b.text
        ]
        widest = max(ties, default=0.0)
        if widest > _TIE.get(self._lm.model.dtype, 1e-3):
            different = f"{len(ties)} of {len(expected)} texts differ from HFLM's"
            return Choice(HFLM, f"{different}, by up to {widest:.2g} nats", widest)
        same = f"equal to HFLM on {len(expected)} prompts"
        tied = f", {len(ties)} of them up to a tie" if ties else ""
        return Choice(path, same + tied, widest)


def _spread(instances: "Sequence[Instance]", n: int) -> "list[Instance]":
    """Up to n requests, evenly from the shortest prompt to the longest."""
    by_length = sorted(instances, key=lambda instance: len(instance.args[0]))
    return [by_length[place] for place in spread_picks(len(by_length), n)]


def _shortened(lm: Any, instance: "Instance") -> "Instance":
    """A copy of a request whose answer ends after a few tokens."""
    from lm_eval.models.utils import normalize_gen_kwargs

    asked: dict[str, Any] = dict(normalize_gen_kwargs(settings_of(instance), lm.max_gen_toks))
    asked["max_gen_toks"] = min(asked["max_gen_toks"], _CHECKED_TOKENS)
    short = copy.copy(instance)
    short.arguments = (instance.args[0], asked)
    return short


def _run_loop(lm: Any, group: Group, instances: "Sequence[Instance]") -> dict[int, Answer]:
    """Answers of a group by our own loop; request's index -> answer."""
    try:
        return {row: group.rule.answer(lm, tokens) for row, tokens in run_group(lm, group)}
    except NonFiniteLogit as error:
        instance = instances[error.row]
        name, row = str(instance.task_name), int(instance.doc_id or 0)
        raise NonFiniteScore(name, row, "logit", error.value) from error


def _run_hflm(lm: Any, group: Group, instances: "Sequence[Instance]") -> dict[int, Answer]:
    """Answers of a group by lm-eval's own ``generate_until``; request's index -> answer."""
    answers: dict[int, Answer] = {}
    recorder = _recorder(lm, max(len(batch.rows) for batch in group.batches))
    for batch in group.batches:
        texts = recorder.generate_until([instances[row] for row in batch.rows], disable_tqdm=True)
        for row, text, written in zip(batch.rows, texts, recorder.written, strict=True):
            answer = group.rule.answer(lm, group.rule.cut(lm, written))
            answers[row] = Answer(text, answer.tokens, answer.is_truncated)
    return answers


def _recorder(lm: Any, batch_size: int) -> Any:
    """lm-eval's HFLM around the same model, keeping the tokens (B, T) that it wrote last."""
    from lm_eval.models import huggingface

    hflm: Any = huggingface.HFLM  # its decorator hides the signature from pyright

    class Recorder(hflm):
        written: list[list[int]]

        def _model_generate(self, context: Any, **rest: Any) -> Any:
            whole = super()._model_generate(context=context, **rest)
            self.written = whole[:, context.shape[1] :].tolist()
            return whole

    return Recorder(
        pretrained=lm.model, tokenizer=lm.tokenizer, backend="causal", batch_size=batch_size
    )


def _tie(lm: Any, instance: "Instance", rule: StopRule, ours: Answer, theirs: Answer) -> float:
    """Nats between the first two tokens that differ; infinite if no token does."""
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
