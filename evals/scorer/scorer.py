"""A model in memory to item scores, for whatever weights it holds now. Knows torch and lm-eval.

The `Scorer` tokenises and batches once. Per call only forward passes are repeated, then lm-eval's
own filters and metrics turn answers into values. How log-likelihoods are computed is the matter of
`paths.py`; ``self_check`` chooses the fastest path that agrees with lm-eval's HFLM.
"""

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..quiet import quiet
from ..scores.audit import NOT_GENERATED
from ..scores.fingerprint import digest, fingerprint_of, tokenizer_digest
from ..scores.scores import COLUMNS, ItemScores, NonFiniteScore, item_scores, joined
from ..tasks.tasks import FrozenTask, TaskError, task_ingredients
from .answers import audit_item, fallbacks
from .architecture import why_not_packed
from .decoding import settings_of
from .generator import HFLM, Generator
from .packed import Caches
from .packing import Row
from .requests import encode
from .rungs import rung_rows
from .scoring_paths import (
    FLAT,
    PACKED,
    LikelihoodRequests,
    PathReport,
    choose_path,
    limits_of,
    sample,
)
from .stopping import Answer, stop_rule

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["PathReport", "Scorer"]
# Prompts whose answers the self-check compares: each is generated twice.
_CHECKED_PROMPTS = 6
_DECIDING = ("torch", "transformers", "tokenizers", "lm_eval")
"""Packages whose versions decide a score."""


@dataclass(frozen=True, eq=False)
class _SplitPlan:
    """Requests of one split or rung: what to ask, and which lm-eval request each answer is for."""

    tasks: tuple[FrozenTask, ...]
    rows: Mapping[str, Sequence[int]]  # of each task's data, ascending
    likelihoods: "tuple[Instance, ...]"
    generations: "tuple[Instance, ...]"
    windows: LikelihoodRequests  # all windows of all `likelihoods`
    owner: NDArray[np.int64]  # (R,) index into `likelihoods`

    def instances(self, task: FrozenTask) -> "list[list[Instance]]":
        """Requests of each document of a task, in the order of ``rows``."""
        return [task.prompts.instances[row] for row in self.rows[task.name]]


class Scorer:
    """Scores frozen tasks with one resident model.

    Args:
        tasks: From `load_tasks`.
        model: A causal language model of transformers; it is put in eval mode. Its weights may be
            overwritten in place between calls.
        tokenizer: Its tokenizer; gets a pad token if it has none (HFLM does that).
        batch_size: Rows per forward pass, the same for every candidate.
        batch_tokens: Tokens per forward pass of the packed path; None: 256 for each of
            ``batch_size``.

    Raises:
        TaskError: If a prompt cannot be scored with this tokenizer and model length.
        ValueError: If a batch holds less than 1, or a task name occurs twice.
    """

    def __init__(
        self,
        tasks: Sequence[FrozenTask],
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 32,
        batch_tokens: int | None = None,
    ) -> None:
        """Tokenise everything; see the class."""
        for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError(f"task names must differ, got {[task.name for task in tasks]}")
        self.tasks = tuple(tasks)
        self.model, self.batch_size = model, batch_size
        self._lm = _reference_lm(model, tokenizer, batch_size)
        self.path = FLAT if why_not_packed(model) else PACKED
        self._limits = limits_of(self._lm, batch_size, batch_tokens)
        self._generator = Generator(self._lm, batch_size)
        self.generation_report: PathReport | None = None
        self._written: dict[int, Answer] = {}  # by id of the instance, which the tasks hold
        splits = dict.fromkeys(chain.from_iterable(task.doc_ids for task in self.tasks))
        self._rungs: dict[str, tuple[_SplitPlan, ...]] = {}
        with quiet():
            self._plans = {split: self._plan(self._rows(split)) for split in splits}
        self._fingerprint = fingerprint_of(self._ingredients())

    @property
    def fingerprint(self) -> str:
        """All that makes scores comparable; see `heterosis.evals.scores.fingerprint`."""
        return self._fingerprint

    def _ingredients(self) -> dict[str, Any]:
        """Named parts of the fingerprint."""
        requests: list[Any] = []
        for split, plan in self._plans.items():
            requests.append([split, [[r.context, r.continuation] for r in plan.windows.requests]])
            requests.append([self._lm.tok_encode(i.args[0]) for i in plan.generations])
        return {
            **task_ingredients(self.tasks),
            "tokens": digest(requests),
            "tokenizer": tokenizer_digest(self._lm.tokenizer),
            "max_length": self._lm.max_length,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **{name: importlib.metadata.version(name) for name in _DECIDING},
        }

    def items(self, split: str) -> int:
        """Number of items of a split; 0 if no task has it."""
        return sum(len(task.doc_ids.get(split, ())) for task in self.tasks)

    def score(self, split: str) -> ItemScores:
        """Score every item of a split with the weights the model now holds.

        Returns:
            Item scores; they depend on the weights alone, not on earlier calls.

        Raises:
            NonFiniteScore: If the model gives NaN or infinity on an item.
            TaskError: If a metric gives no number for a document.
            ValueError: If no task has such a split.
            torch.OutOfMemoryError: As it comes.
        """
        plan = self._planned(split)
        with quiet():
            self._answer_likelihoods(plan)
            self._answer_generations(plan)
            return _measure(plan, self.fingerprint, self._written)

    def plan_rungs(
        self, split: str, order: Sequence[tuple[str, int]] | Sequence[int], ends: Sequence[int]
    ) -> None:
        """Fix the rungs of a split: which items come when, in batches of their own.

        Args:
            split: Whose items.
            order: Every item of the split once, as (task, row of its data) or as its place in
                what `score` returns.
            ends: How many items each rung has scored when it ends, growing; the last is all.

        Raises:
            ValueError: If items are missing, unknown or repeated, or ``ends`` does not grow to all.
        """
        whole = self._planned(split)
        items = [(task.name, row) for task in whole.tasks for row in whole.rows[task.name]]
        rungs = rung_rows(items, order, ends)
        with quiet():
            self._rungs[split] = tuple(self._plan(rows, whole) for rows in rungs)

    def rungs(self, split: str, met: ItemScores | None = None) -> Iterator[ItemScores]:
        """Score a split rung by rung with the weights the model now holds.

        The last rung's scores are those of `score`: the same items and answers, with
        log-likelihoods that differ by rounding, since a rung's batches are its own. Prefixes are
        read once for all rungs, so the weights must not change between two of them.

        Args:
            split: Whose rungs.
            met: Scores of these weights on the first rungs: those are not scored again, and the
                others come out as if they had been.

        Yields:
            Scores of all items up to the rung's end, with every task of the split in the header;
            one wait for the device each.

        Raises:
            ValueError: If the split's rungs are not planned, or ``met`` does not end with one of
                them. Else as `score`.
        """
        if split not in self._rungs:
            raise ValueError(f"split '{split}' has no rungs; call `plan_rungs` first")
        caches: Caches = {}
        done = [] if met is None else [met]
        sizes = [sum(map(len, rung.rows.values())) for rung in self._rungs[split]]
        ends = [0, *accumulate(sizes)]
        if met is not None and met.n not in ends:
            raise ValueError(f"`met` must end with a rung, at {ends} items, got {met.n}")
        for rung in self._rungs[split][ends.index(met.n) if met else 0 :]:
            with quiet():
                self._answer_likelihoods(rung, caches)
                self._answer_generations(rung)
                done.append(_measure(rung, self.fingerprint, self._written))
            yield joined(done)

    def rehearse(self, split: str, batches: int = 3) -> None:
        """Do a small share of the work of `score` and forget the answers; for timing it."""
        plan = self._plans[split]
        with quiet():
            if plan.likelihoods:
                plan.windows.rehearse(self.path, self._lm, batches)
            if plan.generations:
                self._generator.rehearse(plan.generations)

    def self_check(self, n: int = 32) -> PathReport:
        """Compare the fast paths with HFLM on up to ``n`` requests, and choose one.

        Requests are drawn evenly from all splits, shortest to longest, with others of the same
        document. From then on `score` uses the path in the report. Generation is checked
        likewise, in `generation_report`.
        """
        self._check_generations(n)
        plans = self._plans.values()
        every = list(chain.from_iterable(plan.windows.requests for plan in plans))
        tasks = list(chain.from_iterable(plan.windows.tasks for plan in plans))
        picks = sample(every, tasks, n)
        if not picks:
            return PathReport(self.path, "no log-likelihood requests to compare", 0.0)
        some = LikelihoodRequests(
            [every[i] for i in picks], [tasks[i] for i in picks], self._limits
        )
        with quiet():
            report = choose_path(self._lm, some)
        self.path = report.path
        return report

    def _check_generations(self, n: int) -> None:
        """Compare the generation loop with HFLM on a handful of prompts, and choose a path."""
        every = list(chain.from_iterable(plan.generations for plan in self._plans.values()))
        with quiet():
            choice = self._generator.check(every, min(n, _CHECKED_PROMPTS))
        if every:
            reason, tie = choice.reason, choice.widest_tie
            self.generation_report = PathReport(choice.path, reason, tie)

    def _rows(self, split: str) -> dict[str, tuple[int, ...]]:
        """Rows of each task that has the split."""
        return {task.name: ids for task in self.tasks if (ids := task.doc_ids.get(split))}

    def _planned(self, split: str) -> _SplitPlan:
        if split not in self._plans:
            raise ValueError(
                f"no task has items in split '{split}'; there are {', '.join(self._plans)}"
            )
        return self._plans[split]

    def _plan(
        self, rows: Mapping[str, Sequence[int]], whole: _SplitPlan | None = None
    ) -> _SplitPlan:
        """Tokenise some documents; those of a rung share the prefixes of the whole split."""
        tasks = tuple(task for task in self.tasks if task.name in rows)  # even without rows
        likelihoods: list[Instance] = []
        generations: list[Instance] = []
        windows, labels = [], []
        for task in tasks:
            label = self.tasks.index(task)
            for instance in chain.from_iterable(task.prompts.instances[r] for r in rows[task.name]):
                if instance.request_type == "generate_until":
                    _refuse_long_answers(self._lm, instance)
                    generations.append(instance)
                    continue
                likelihoods.append(instance)
                windows.append(encode(self._lm, instance))
                labels += [label] * len(windows[-1])
        self._generator.plan(tuple(generations))
        prefixes: dict[int, Row] | None = whole.windows.prefixes if whole else None
        return _SplitPlan(
            tasks=tasks,
            rows=rows,
            likelihoods=tuple(likelihoods),
            generations=tuple(generations),
            windows=LikelihoodRequests(list(chain(*windows)), labels, self._limits, prefixes),
            owner=np.repeat(np.arange(len(windows)), [len(w) for w in windows]),
        )

    def _answer_likelihoods(self, plan: _SplitPlan, caches: Caches | None = None) -> None:
        """Put fresh answers into the log-likelihood instances of a split."""
        if not plan.likelihoods:
            return
        lls, greedy, _ = plan.windows.run(self.path, self._lm, caches)
        for index in np.flatnonzero(~np.isfinite(lls)):
            instance = plan.likelihoods[plan.owner[index]]
            name, row = str(instance.task_name), int(instance.doc_id or 0)
            raise NonFiniteScore(name, row, "log-likelihood", float(lls[index]))
        total = np.bincount(plan.owner, weights=lls, minlength=len(plan.likelihoods)).tolist()
        missed = np.bincount(plan.owner, weights=~greedy, minlength=len(plan.likelihoods))
        for instance, ll, misses in zip(plan.likelihoods, total, missed, strict=True):
            rolling = instance.request_type == "loglikelihood_rolling"
            _answer(instance, ll if rolling else (ll, bool(misses == 0)))

    def _answer_generations(self, plan: _SplitPlan) -> None:
        """Put fresh answers into the generation instances of a split, greedy ones."""
        if not plan.generations:
            return
        if self._generator.choice.path == HFLM:
            self._refuse_non_finite_logits(plan.generations[0])
        answers = self._generator.answers(plan.generations)
        for instance, answer in zip(plan.generations, answers, strict=True):
            _answer(instance, answer.text)
            self._written[id(instance)] = answer

    def _refuse_non_finite_logits(self, instance: "Instance") -> None:
        """Look at one prompt's logits: generation would turn NaN into some token in silence."""
        tokens = self._lm.tok_encode(instance.args[0])[-self._lm.max_length :]
        ids = torch.tensor([tokens or [self._lm.prefix_token_id]], device=self._lm.device)
        with torch.no_grad():
            last = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()  # (V,)
        if not bool(torch.isfinite(last).all()):
            worst = float(last[~torch.isfinite(last)][0])
            name, row = str(instance.task_name), int(instance.doc_id or 0)
            raise NonFiniteScore(name, row, "logit", worst)


def _refuse_long_answers(lm: Any, instance: "Instance") -> None:
    """Raise TaskError if a generation could outgrow the model: lm-eval only asserts it."""
    limit = stop_rule(lm, settings_of(instance)).limit
    if limit >= lm.max_length:
        raise TaskError(
            f"task '{instance.task_name}': `max_gen_toks` must be below the model's length "
            f"{lm.max_length}, got {limit}; set it in the task's `generation_kwargs`"
        )


def _reference_lm(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's own scorer around the same model, log-softmax in float32."""
    with quiet():
        from lm_eval.models import huggingface

        lm: Any = huggingface.HFLM  # its decorator hides the signature from pyright
        return lm(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            softmax_dtype="float32",
        )


def _answer(instance: "Instance", response: Any) -> None:
    """Give an instance its only answers; what an earlier candidate answered is cleared."""
    instance.resps = [response] * (instance.repeats or 1)
    instance.filtered_resps = {}


def _measure(plan: _SplitPlan, fingerprint: str, written: Mapping[int, Answer]) -> ItemScores:
    """Turn answers into item scores with lm-eval's own filters and ``process_results``."""
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    tasks = plan.tasks
    for index, task in enumerate(tasks):
        requests = plan.instances(task)
        _filter(task, list(chain.from_iterable(requests)))
        unread = fallbacks(task.task, task.metric.filter)
        for row, own in zip(plan.rows[task.name], requests, strict=True):
            answers = [instance.filtered_resps[task.metric.filter] for instance in own]
            values: Any = task.task.process_results(own[0].doc, answers)
            value, weight = task.metric.item(values, task.name, row)
            audit = _audit(task, own[0], written, unread)
            item = (index, row, value, weight, *_of_gold(task, row, own), *audit)
            for column, number in zip(columns.values(), item, strict=True):
                column.append(number)
    header = {
        "tasks": [task.name for task in tasks],
        "metrics": [task.metric.key for task in tasks],
        "aggregations": [task.metric.aggregation for task in tasks],
        "higher_is_better": [task.higher_is_better for task in tasks],
    }
    return item_scores(header, columns, fingerprint)


def _audit(
    task: FrozenTask, instance: "Instance", written: Mapping[int, Answer], unread: frozenset[str]
) -> tuple[float, ...]:
    """Audit columns of an item."""
    answer = written.get(id(instance))
    if answer is None:
        return NOT_GENERATED
    return audit_item(answer, instance.filtered_resps[task.metric.filter], unread)


def _filter(task: FrozenTask, instances: "list[Instance]") -> None:
    """Apply the metric's filter of a task to its instances; lm-eval refuses an empty list."""
    if not instances:
        return
    for ensemble in task.task._filters:
        if ensemble.name == task.metric.filter:
            ensemble.apply(instances)


def _of_gold(task: FrozenTask, row: int, instances: "Sequence[Instance]") -> tuple[float, float]:
    """Margin of an item and its right answer's log-likelihood, nats; see `ItemScores`."""
    if task.output_type == "loglikelihood":
        found = float(instances[0].resps[0][0])
        return found, found
    gold = task.prompts.gold.get(row, ())
    lls = [instance.resps[0][0] for instance in instances[: task.prompts.n_choices.get(row, 0)]]
    others = [ll for choice, ll in enumerate(lls) if choice not in gold]
    best = max((lls[choice] for choice in gold), default=math.nan)
    return best - max(others, default=math.nan), best
