"""A model in memory to item scores, for whatever weights it holds now. Knows torch and lm-eval.

The `Scorer` tokenises and batches once. Per call only forward passes are repeated, then lm-eval's
own filters and metrics turn answers into values. ``self_check`` compares the flat loop with
lm-eval's HFLM on the model at hand; where they differ, HFLM does the work.
"""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .audit import NOT_GENERATED, audit_item, fallbacks
from .encoding import encode
from .fingerprint import digest, fingerprint_of, tokenizer_digest
from .flat import FlatPlan, Request, plan_flat, rehearse, run_flat
from .generating import HFLM, Generator
from .generation import settings_of
from .quiet import quiet
from .scores import COLUMNS, ItemScores, NonFiniteScore, item_scores
from .stopping import Answer, stop_rule
from .tasks import FrozenTask, TaskError, task_ingredients

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

FLAT, HFLM_PATH = "flat", "hflm"

# Prompts whose answers the self-check compares: each is generated twice.
_CHECKED_PROMPTS = 6

# Largest difference per scored token, in nats, between two right ways to score: batches of another
# shape sum in another order. Float32: 1e-5 seen; 16 bit: one unit in the last place of a logit
# near 16 is 0.06 (bfloat16) or 0.008 (float16). A wrong mask or a lost soft-cap gives 0.1 to 10.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.12}


_DECIDING = ("torch", "transformers", "tokenizers", "lm_eval")
"""Packages whose versions decide a score."""


@dataclass(frozen=True)
class PathReport:
    """Which loop scores, why, and how far apart the two were (nats per scored token)."""

    path: str
    reason: str
    max_difference: float


@dataclass(frozen=True, eq=False)
class _SplitPlan:
    """Requests of one split: what to ask, and which answers belong to which lm-eval request."""

    tasks: tuple[FrozenTask, ...]
    likelihoods: "tuple[Instance, ...]"
    generations: "tuple[Instance, ...]"
    requests: tuple[Request, ...]  # all windows of all `likelihoods`
    owner: NDArray[np.int64]  # (R,) index into `likelihoods`
    flat: FlatPlan


class Scorer:
    """Scores frozen tasks with one resident model.

    Args:
        tasks: From `load_tasks`.
        model: A causal language model of transformers; it is put in eval mode. Its weights may be
            overwritten in place between calls.
        tokenizer: Its tokenizer; gets a pad token if it has none (HFLM does that).
        batch_size: Rows per forward pass, the same for every candidate.

    Raises:
        TaskError: If a prompt cannot be scored with this tokenizer and model length.
        ValueError: If ``batch_size`` is below 1 or a task name occurs twice.
    """

    def __init__(
        self, tasks: Sequence[FrozenTask], model: Any, tokenizer: Any, *, batch_size: int = 32
    ) -> None:
        """Tokenise and batch everything; see the class."""
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError(f"task names must differ, got {[task.name for task in tasks]}")
        self.tasks = tuple(tasks)
        self.model, self.batch_size, self.path = model, batch_size, FLAT
        self._lm = _reference_lm(model, tokenizer, batch_size)
        self._generator = Generator(self._lm, batch_size)
        self.generation_report: PathReport | None = None
        self._written: dict[int, Answer] = {}  # by id of the instance, which the tasks hold
        splits = dict.fromkeys(chain.from_iterable(task.doc_ids for task in self.tasks))
        with quiet():
            self._plans = {split: self._plan(split) for split in splits}
        self._fingerprint = fingerprint_of(self._ingredients())

    @property
    def fingerprint(self) -> str:
        """All that makes scores comparable; see `heterosis.evals.fingerprint`."""
        return self._fingerprint

    def _ingredients(self) -> dict[str, Any]:
        """Named parts of the fingerprint."""
        requests: list[Any] = []
        for split, plan in self._plans.items():
            requests.append([split, [[r.context, r.continuation] for r in plan.requests]])
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
        if split not in self._plans:
            raise ValueError(
                f"no task has items in split '{split}'; there are {', '.join(self._plans)}"
            )
        plan = self._plans[split]
        with quiet():
            self._answer_likelihoods(plan)
            self._answer_generations(plan)
            return _measure(plan.tasks, split, self.fingerprint, self._written)

    def rehearse(self, split: str, batches: int = 3) -> None:
        """Do a small share of the work of `score` and forget the answers; for timing it."""
        plan = self._plans[split]
        with quiet():
            if plan.requests:
                rehearse(self.model, plan.flat, batches)
            if plan.generations:
                self._generator.rehearse(plan.generations)

    def self_check(self, n: int = 32) -> PathReport:
        """Compare the flat loop with HFLM on up to ``n`` requests, and choose between them.

        Requests are drawn evenly from all splits, shortest to longest. From then on `score` uses
        the path in the report. Generation is checked likewise, in `generation_report`.
        """
        self._check_generations(n)
        every = list(dict.fromkeys(chain.from_iterable(p.requests for p in self._plans.values())))
        every.sort(key=lambda request: (len(request.context), len(request.continuation)))
        if not every or n < 1:
            return PathReport(self.path, "no log-likelihood requests to compare", 0.0)
        picks = np.unique(np.linspace(0, len(every) - 1, min(n, len(every))).round().astype(int))
        with quiet():
            report = self._compare([every[i] for i in picks])
        if report.path == HFLM_PATH:
            log.warning("scoring with lm-eval's own loop, which is slower: %s", report.reason)
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

    def _plan(self, split: str) -> _SplitPlan:
        """Tokenise and batch one split."""
        tasks = tuple(task for task in self.tasks if task.doc_ids.get(split))
        instances = list(
            chain.from_iterable(chain.from_iterable(task.instances(split) for task in tasks))
        )
        likelihoods = tuple(i for i in instances if i.request_type != "generate_until")
        for instance in instances:
            if instance.request_type == "generate_until":
                _refuse_long_answers(self._lm, instance)
        generations = tuple(i for i in instances if i.request_type == "generate_until")
        self._generator.plan(generations)
        windows = [encode(self._lm, instance) for instance in likelihoods]
        requests = tuple(chain.from_iterable(windows))
        return _SplitPlan(
            tasks=tasks,
            likelihoods=likelihoods,
            generations=generations,
            requests=requests,
            owner=np.repeat(np.arange(len(windows)), [len(w) for w in windows]),
            flat=self._flat_plan(requests),
        )

    def _flat_plan(self, requests: Sequence[Request]) -> FlatPlan:
        return plan_flat(
            requests,
            batch_size=self.batch_size,
            max_length=self._lm.max_length,
            device=self._lm.device,
        )

    def _answer_likelihoods(self, plan: _SplitPlan) -> None:
        """Put fresh answers into the log-likelihood instances of a split."""
        if not plan.requests and not plan.likelihoods:
            return
        if self.path == FLAT:
            lls, greedy = run_flat(self.model, plan.flat)
        else:
            lls, greedy = self._run_hflm(plan.requests)
        for index in np.flatnonzero(~np.isfinite(lls)):
            instance = plan.likelihoods[plan.owner[index]]
            name, row = str(instance.task_name), int(instance.doc_id or 0)
            raise NonFiniteScore(name, row, "log-likelihood", float(lls[index]))
        total = np.bincount(plan.owner, weights=lls, minlength=len(plan.likelihoods)).tolist()
        missed = np.bincount(plan.owner, weights=~greedy, minlength=len(plan.likelihoods))
        for instance, ll, misses in zip(plan.likelihoods, total, missed, strict=True):
            rolling = instance.request_type == "loglikelihood_rolling"
            _answer(instance, ll if rolling else (ll, bool(misses == 0)))

    def _run_hflm(
        self, requests: Sequence[Request]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Score requests with lm-eval's own loop: log-likelihoods (R,) and greedy flags (R,)."""
        encoded = [(None, list(r.context), list(r.continuation)) for r in requests]
        answers = self._lm._loglikelihood_tokens(encoded, disable_tqdm=True)
        lls = np.array([ll for ll, _ in answers], dtype=np.float64)
        return lls, np.array([greedy for _, greedy in answers], dtype=np.bool_)

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

    def _compare(self, requests: Sequence[Request]) -> PathReport:
        """Score requests both ways; see `self_check`."""
        tolerance = _TOLERANCE.get(self.model.dtype, 1e-3)
        expected, expected_greedy = self._run_hflm(requests)
        try:
            found, greedy = run_flat(self.model, self._flat_plan(requests))
        except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
            reason = f"the model's forward refuses the flat loop: {' '.join(str(error).split())}"
            return PathReport(HFLM_PATH, reason, float("inf"))
        lengths = np.array([len(request.continuation) for request in requests])
        with np.errstate(invalid="ignore"):
            worst = float(np.nan_to_num(np.abs(found - expected) / lengths, nan=np.inf).max())
        if worst > tolerance:
            reason = f"log-likelihoods differ by {worst:.2g} nats per token, above {tolerance:g}"
            return PathReport(HFLM_PATH, reason, worst)
        if flips := int((greedy != expected_greedy).sum()):
            reason = f"{flips} of {len(requests)} greedy flags differ"
            return PathReport(HFLM_PATH, reason, worst)
        return PathReport(FLAT, f"equal to HFLM on {len(requests)} requests", worst)


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


def _measure(
    tasks: Sequence[FrozenTask], split: str, fingerprint: str, written: Mapping[int, Answer]
) -> ItemScores:
    """Turn answers into item scores with lm-eval's own filters and ``process_results``."""
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for index, task in enumerate(tasks):
        requests = task.instances(split)
        _filter(task, list(chain.from_iterable(requests)))
        unread = fallbacks(task.task, task.metric.filter)
        for row, own in zip(task.doc_ids[split], requests, strict=True):
            answers = [instance.filtered_resps[task.metric.filter] for instance in own]
            values: Any = task.task.process_results(own[0].doc, answers)
            value, weight = task.metric.item(values, task.name, row)
            audit = _audit(task, own[0], written, unread)
            item = (index, row, value, weight, _margin(task, row, own), *audit)
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
    """Apply the metric's filter of a task to its instances."""
    for ensemble in task.task._filters:
        if ensemble.name == task.metric.filter:
            ensemble.apply(instances)


def _margin(task: FrozenTask, row: int, instances: "Sequence[Instance]") -> float:
    """Nats: gold minus best other (multiple choice), gold (loglikelihood), nan otherwise."""
    if task.output_type == "loglikelihood":
        return float(instances[0].resps[0][0])
    gold = task.prompts.gold.get(row, ())
    lls = [instance.resps[0][0] for instance in instances[: task.prompts.n_choices.get(row, 0)]]
    others = [ll for choice, ll in enumerate(lls) if choice not in gold]
    if not gold or not others:
        return float("nan")
    return max(lls[choice] for choice in gold) - max(others)
