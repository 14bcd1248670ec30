"""Score the items of tasks with the current weights of a model. Knows torch and lm-eval.

The `Scorer` tokenises and batches once. Each call repeats only the forward passes; lm-eval's own
filters and metrics turn answers into values. `scoring_paths.py` computes log-likelihoods, and
``self_check`` chooses the fastest path that agrees with lm-eval's HFLM.
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
from ..scores.fingerprint import digest, fingerprint_of, tokenizer_digest
from ..scores.scores import COLUMNS, ItemScores, NonFiniteScore, item_scores, joined
from ..tasks.tasks import FrozenTask, TaskError, task_ingredients
from .answers import audit_item, fallbacks
from .architecture import why_not_packed
from .decoding import settings_of
from .generator import Generator
from .packed import Caches
from .packing import Row
from .requests import encode
from .rungs import rung_rows
from .scoring_paths import (
    FLAT,
    HFLM,
    PACKED,
    LikelihoodRequests,
    PathReport,
    choose_path,
    limits_of,
)
from .stopping import Answer, stop_rule

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# Prompts whose answers the self-check compares; each is answered twice.
_CHECKED_PROMPTS = 6
_DECIDING = ("torch", "transformers", "tokenizers", "lm_eval")
"""Packages whose versions are part of the fingerprint."""


@dataclass(frozen=True, eq=False)
class _SplitPlan:
    """Requests of one split or rung, and the lm-eval request of each answer."""

    tasks: tuple[FrozenTask, ...]
    rows: Mapping[str, Sequence[int]]  # rows of each task's data, ascending
    likelihoods: "tuple[Instance, ...]"
    generations: "tuple[Instance, ...]"
    windows: LikelihoodRequests  # all windows of all `likelihoods`
    owner: NDArray[np.int64]  # (R,) index into `likelihoods`

    def instances(self, task: FrozenTask) -> "list[list[Instance]]":
        """Return the requests of each document of a task, in the order of ``rows``."""
        return [task.prompts.instances[row] for row in self.rows[task.name]]


class Scorer:
    """Scorer of frozen tasks with one resident model.

    Args:
        tasks: Tasks from `load_tasks`.
        model: A causal language model of transformers, put in eval mode. Its weights may be
            overwritten in place between calls.
        tokenizer: Its tokenizer; HFLM adds a pad token if it has none.
        batch_size: Rows per forward pass, the same for every candidate.
        batch_tokens: Tokens per forward pass of the packed path; None: 256 times ``batch_size``.

    Attributes:
        tasks: The tasks.
        model: The model.
        lm: An HFLM around it, for lm-eval's rules on tokens.
        limits: Limits of its batches.
        path: Path of log-likelihoods in use.

    Raises:
        TaskError: If a prompt cannot be scored with this tokenizer and model length.
        ValueError: If a batch size is below 1, or two tasks have one name.
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
        self.lm = _reference_lm(model, tokenizer, batch_size)
        self.path = FLAT if why_not_packed(model) else PACKED
        self.limits = limits_of(self.lm, batch_size, batch_tokens)
        self._generator = Generator(self.lm, batch_size)
        self.generation_report: PathReport | None = None
        self._written: dict[int, Answer] = {}  # by id of the instance, which a task keeps alive
        splits = dict.fromkeys(chain.from_iterable(task.doc_ids for task in self.tasks))
        self._rungs: dict[str, tuple[_SplitPlan, ...]] = {}
        with quiet():
            self._plans = {split: self._plan(self._rows(split)) for split in splits}
        self._fingerprint = fingerprint_of(self._ingredients())

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its scores; see `heterosis.evals.scores.fingerprint`."""
        return self._fingerprint

    def _ingredients(self) -> dict[str, Any]:
        """Return the ingredients of the fingerprint."""
        requests: list[Any] = []
        for split, plan in self._plans.items():
            requests.append([split, [[r.context, r.continuation] for r in plan.windows.requests]])
            requests.append([self.lm.tok_encode(i.args[0]) for i in plan.generations])
        return {
            **task_ingredients(self.tasks),
            "tokens": digest(requests),
            "tokenizer": tokenizer_digest(self.lm.tokenizer),
            "max_length": self.lm.max_length,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **{name: importlib.metadata.version(name) for name in _DECIDING},
        }

    def items(self, split: str) -> int:
        """Return the number of items of a split; 0 if no task has it."""
        return sum(len(task.doc_ids.get(split, ())) for task in self.tasks)

    def score(self, split: str) -> ItemScores:
        """Score every item of a split with the current weights of the model.

        Returns:
            Item scores, which depend on the weights alone, not on earlier calls.

        Raises:
            NonFiniteScore: If the model gives NaN or infinity on an item.
            TaskError: If a metric gives no number for a document.
            ValueError: If no task has such a split.
            torch.OutOfMemoryError: If memory runs out.
        """
        plan = self._planned(split)
        with quiet():
            self._answer_likelihoods(plan)
            self._answer_generations(plan)
            return _measure(plan, self.fingerprint, self._written)

    def plan_rungs(
        self, split: str, order: Sequence[tuple[str, int]] | Sequence[int], ends: Sequence[int]
    ) -> None:
        """Plan the rungs of a split; each has its own batches.

        Args:
            split: Name of the split.
            order: Every item of the split once, as (task, row of its data) or as its place in the
                scores of `score`.
            ends: Number of items scored when each rung ends, increasing to all.

        Raises:
            ValueError: If items are missing, unknown or repeated, or ``ends`` does not increase to
                all items.
        """
        plan = self._planned(split)
        items = [(task.name, row) for task in plan.tasks for row in plan.rows[task.name]]
        rungs = rung_rows(items, order, ends)
        with quiet():
            self._rungs[split] = tuple(self._plan(rows, plan) for rows in rungs)

    def rungs(self, split: str, partial: ItemScores | None = None) -> Iterator[ItemScores]:
        """Score a split rung by rung with the current weights of the model.

        The scores of the last rung equal those of `score` up to rounding of log-likelihoods: a
        rung has its own batches. Prefixes are computed once for all rungs, so the weights must not
        change between rungs.

        Args:
            split: Name of the split.
            partial: Scores of these weights on the first rungs, which are not scored again.

        Yields:
            Scores of all items up to the end of a rung, with every task of the split in the header;
            each waits once for the device.

        Raises:
            ValueError: If the split's rungs are not planned, or ``partial`` does not end with a
                rung. Else as `score`.
        """
        if split not in self._rungs:
            raise ValueError(f"split '{split}' has no rungs; call `plan_rungs` first")
        caches: Caches = {}
        parts = [] if partial is None else [partial]
        sizes = [sum(map(len, rung.rows.values())) for rung in self._rungs[split]]
        ends = [0, *accumulate(sizes)]
        if partial is not None and partial.n not in ends:
            raise ValueError(f"`partial` must end with a rung, at {ends} items, got {partial.n}")
        for rung in self._rungs[split][ends.index(partial.n) if partial else 0 :]:
            with quiet():
                self._answer_likelihoods(rung, caches)
                self._answer_generations(rung)
                parts.append(_measure(rung, self.fingerprint, self._written))
            yield joined(parts)

    def rehearse(self, split: str, batches: int = 3) -> None:
        """Do a small share of the work of `score` and discard the results; for timing."""
        plan = self._plans[split]
        with quiet():
            if plan.likelihoods:
                plan.windows.rehearse(self.path, self.lm, batches)
            if plan.generations:
                self._generator.rehearse(plan.generations)

    def self_check(self, n: int = 32) -> PathReport:
        """Compare the fast paths with HFLM on up to ``n`` requests, and choose one.

        Requests are chosen evenly from all splits, shortest to longest, with others of the same
        document. `score` then uses the path in the report. Generation is checked likewise, see
        `generation_report`.
        """
        self._check_generations(n)
        windows = [plan.windows for plan in self._plans.values()]
        requests = list(chain.from_iterable(each.requests for each in windows))
        tasks = list(chain.from_iterable(each.tasks for each in windows))
        if not requests:
            return PathReport(self.path, "no log-likelihood requests to compare", 0.0)
        with quiet():
            report = choose_path(self.lm, requests, tasks, self.limits, n)
        self.path = report.path
        return report

    def _check_generations(self, n: int) -> None:
        """Compare the generation loop with HFLM on a few prompts, and choose a path."""
        every = list(chain.from_iterable(plan.generations for plan in self._plans.values()))
        with quiet():
            report = self._generator.check(every, min(n, _CHECKED_PROMPTS))
        self.generation_report = report if every else None

    def _rows(self, split: str) -> dict[str, tuple[int, ...]]:
        """Return the rows of each task that has the split."""
        return {task.name: ids for task in self.tasks if (ids := task.doc_ids.get(split))}

    def _planned(self, split: str) -> _SplitPlan:
        if split not in self._plans:
            raise ValueError(
                f"no task has items in split '{split}'; splits are {', '.join(self._plans)}"
            )
        return self._plans[split]

    def _plan(
        self, rows: Mapping[str, Sequence[int]], split_plan: _SplitPlan | None = None
    ) -> _SplitPlan:
        """Tokenise some documents; a rung uses the prefixes of its split's plan."""
        tasks = tuple(task for task in self.tasks if task.name in rows)  # even without rows
        likelihoods: list[Instance] = []
        generations: list[Instance] = []
        windows, labels = [], []
        for task in tasks:
            label = self.tasks.index(task)
            for instance in chain.from_iterable(task.prompts.instances[r] for r in rows[task.name]):
                if instance.request_type == "generate_until":
                    _refuse_long_answers(self.lm, instance)
                    generations.append(instance)
                    continue
                likelihoods.append(instance)
                windows.append(encode(self.lm, instance))
                labels += [label] * len(windows[-1])
        self._generator.plan(tuple(generations))
        prefixes: dict[int, Row] | None = split_plan.windows.prefixes if split_plan else None
        return _SplitPlan(
            tasks=tasks,
            rows=rows,
            likelihoods=tuple(likelihoods),
            generations=tuple(generations),
            windows=LikelihoodRequests(list(chain(*windows)), labels, self.limits, prefixes),
            owner=np.repeat(np.arange(len(windows)), [len(w) for w in windows]),
        )

    def _answer_likelihoods(self, plan: _SplitPlan, caches: Caches | None = None) -> None:
        """Compute the log-likelihoods of a plan, and store them in lm-eval's instances."""
        if not plan.likelihoods:
            return
        lls, greedy, _ = plan.windows.run(self.path, self.lm, caches)
        for index in np.flatnonzero(~np.isfinite(lls)):
            instance = plan.likelihoods[plan.owner[index]]
            name, row = str(instance.task_name), int(instance.doc_id or 0)
            raise NonFiniteScore(name, row, "log-likelihood", float(lls[index]))
        total = np.bincount(plan.owner, weights=lls, minlength=len(plan.likelihoods)).tolist()
        missed = np.bincount(plan.owner, weights=~greedy, minlength=len(plan.likelihoods))
        for instance, ll, misses in zip(plan.likelihoods, total, missed, strict=True):
            is_rolling = instance.request_type == "loglikelihood_rolling"
            set_response(instance, ll if is_rolling else (ll, bool(misses == 0)))

    def _answer_generations(self, plan: _SplitPlan) -> None:
        """Generate the greedy answers of a plan, and store them in lm-eval's instances."""
        if not plan.generations:
            return
        if self._generator.report.path == HFLM:
            self._refuse_non_finite_logits(plan.generations[0])
        answers = self._generator.answers(plan.generations)
        for instance, answer in zip(plan.generations, answers, strict=True):
            set_response(instance, answer.text)
            self._written[id(instance)] = answer

    def _refuse_non_finite_logits(self, instance: "Instance") -> None:
        """Check one prompt's logits: HFLM's generation turns NaN into a token silently."""
        tokens = self.lm.tok_encode(instance.args[0])[-self.lm.max_length :]
        ids = torch.tensor([tokens or [self.lm.prefix_token_id]], device=self.lm.device)
        with torch.no_grad():
            last = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()  # (V,)
        if not bool(torch.isfinite(last).all()):
            worst = float(last[~torch.isfinite(last)][0])
            name, row = str(instance.task_name), int(instance.doc_id or 0)
            raise NonFiniteScore(name, row, "logit", worst)


def _refuse_long_answers(lm: Any, instance: "Instance") -> None:
    """Raise TaskError if an answer can be longer than the model allows, which lm-eval asserts."""
    limit = stop_rule(lm, settings_of(instance)).limit
    if limit >= lm.max_length:
        raise TaskError(
            f"task '{instance.task_name}': `max_gen_toks` must be below the model's length "
            f"{lm.max_length}, got {limit}; set it in the task's `generation_kwargs`"
        )


def _reference_lm(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return an HFLM around the model, with its log-softmax in float32."""
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


def set_response(instance: "Instance", response: Any) -> None:
    """Store the only response of an instance, and clear that of the last candidate."""
    instance.resps = [response] * (instance.repeats or 1)
    instance.filtered_resps = {}


def _measure(plan: _SplitPlan, fingerprint: str, written: Mapping[int, Answer]) -> ItemScores:
    """Compute item scores from responses by lm-eval's own filters and ``process_results``."""
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    tasks = plan.tasks
    for index, task in enumerate(tasks):
        requests = plan.instances(task)
        apply_filter(task, list(chain.from_iterable(requests)))
        no_match = fallbacks(task.task, task.metric.filter)
        for row, instances in zip(plan.rows[task.name], requests, strict=True):
            filtered = [instance.filtered_resps[task.metric.filter] for instance in instances]
            values: Any = task.task.process_results(instances[0].doc, filtered)
            value, weight = task.metric.item(values, task.name, row)
            audit = audit_item(written.get(id(instances[0])), filtered[0], no_match)
            item = (index, row, value, weight, *_margin(task, row, instances), *audit)
            for column, number in zip(columns.values(), item, strict=True):
                column.append(number)
    header = {
        "tasks": [task.name for task in tasks],
        "metrics": [task.metric.key for task in tasks],
        "aggregations": [task.metric.aggregation for task in tasks],
        "higher_is_better": [task.higher_is_better for task in tasks],
    }
    return item_scores(header, columns, fingerprint)


def apply_filter(task: FrozenTask, instances: "list[Instance]") -> None:
    """Apply the filter of a task's metric to its instances; lm-eval refuses an empty list."""
    if not instances:
        return
    for ensemble in task.task._filters:
        if ensemble.name == task.metric.filter:
            ensemble.apply(instances)


def _margin(task: FrozenTask, row: int, instances: "Sequence[Instance]") -> tuple[float, float]:
    """Return an item's margin and log-likelihood of the right answer, nats; see `ItemScores`."""
    if task.output_type == "loglikelihood":
        ll = float(instances[0].resps[0][0])
        return ll, ll
    gold = task.prompts.gold.get(row, ())
    lls = [instance.resps[0][0] for instance in instances[: task.prompts.n_choices.get(row, 0)]]
    others = [ll for choice, ll in enumerate(lls) if choice not in gold]
    best = max((lls[choice] for choice in gold), default=math.nan)
    return best - max(others, default=math.nan), best
