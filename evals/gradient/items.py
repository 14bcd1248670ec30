"""Items of a split with what their losses need: requests and twins. Knows lm-eval.

A task whose answers are generated is scored by an answer that is given: the reference of the
document where the task's own filter and metric count it as right, else an answer of a parent that
they did. A task without a smooth twin is named with its reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..scorer.batches import Request
from ..scorer.requests import encode
from ..scorer.scorer import Scorer, apply_filter, set_response
from ..scores.term_columns import METRIC, TermColumn
from ..scores.terms import Term
from ..tasks.tasks import FrozenTask
from .twins import Twin, choice_twin

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

ItemKey = tuple[str, int]
"""Task and row of its data."""
Answers = Mapping[ItemKey, str]
"""Generated text of each item that the task's metric counted as right."""


@dataclass(frozen=True)
class SmoothItem:
    """One item: requests, and the twin of each of its terms.

    Attributes:
        key: Task and row.
        requests: Log-likelihood requests, windows of one text included.
        owner: Answer of each request, ascending from 0; a text has one answer.
        twins: Name of the term -> its twin.
    """

    key: ItemKey
    requests: tuple[Request, ...]
    owner: tuple[int, ...]
    twins: Mapping[str, Twin]

    @property
    def n_tokens(self) -> int:
        """Tokens that a forward pass reads, about: the longest context once, all continuations."""
        contexts = max(len(request.context) for request in self.requests)
        return contexts + sum(len(request.continuation) for request in self.requests)


def smooth_items(
    scorer: Scorer, split: str, terms: Sequence[Term], answers: Answers
) -> tuple[tuple[SmoothItem, ...], dict[str, str]]:
    """Return the items of a split that have a smooth twin, and why others have none.

    Args:
        scorer: Scorer of the tasks.
        split: Name of the split.
        terms: Terms of the objective.
        answers: Right answers of parents, for items without a reference that can be generated.

    Returns:
        Items in the order of tasks and rows; term -> why it, or some of its items, have no twin.
    """
    items, reasons = [], {}
    for task in scorer.tasks:
        named = [term for term in terms if term.task == task.name]
        lacking = {t.name: reason for t in named if (reason := _no_twin(task, t.column))}
        usable = [term for term in named if term.name not in lacking]
        reasons |= lacking
        rows = task.doc_ids.get(split, ())
        made = [_item(scorer.lm, task, row, usable, answers) for row in rows if usable]
        items += [item for item in made if item is not None]
        missing = sum(item is None for item in made)
        if missing:
            reason = f"{missing} of {len(rows)} documents have no right answer to learn from"
            reasons |= {term.name: reason for term in usable}
    return tuple(items), reasons


def _no_twin(task: FrozenTask, column: TermColumn) -> str:
    """Return why a term has no smooth twin; "" if it has."""
    if column == "length":
        return "the length of an answer has no slope"
    if task.output_type == "generate_until" and column == METRIC and not task.higher_is_better:
        return f"no answer is right by `{task.metric.name}`, which is better when lower"
    return ""


def _item(
    lm: Any, task: FrozenTask, row: int, terms: Sequence[Term], answers: Answers
) -> SmoothItem | None:
    instances = task.prompts.instances[row]
    if task.output_type == "generate_until":
        text = reference(task, row)
        text = answers.get((task.name, row)) if text is None else text
        if text is None:
            return None
        context = str(instances[0].args[0])
        pairs = [lm._encode_pair(context, text + ending(task))]
        requests = [[Request(tuple(c), tuple(t)) for c, t in pairs]]
        twins = {term.name: Twin(term.column) for term in terms}
    elif task.output_type == "multiple_choice":
        gold, n_choices = task.prompts.gold.get(row, ()), task.prompts.n_choices.get(row, 0)
        if not gold or len(gold) == n_choices:
            return None
        is_relative = any(term.column == METRIC for term in terms) and len(instances) > n_choices
        requests = [encode(lm, i) for i in (instances if is_relative else instances[:n_choices])]
        twins = {t.name: choice_twin(task, row, t.column, len(requests)) for t in terms}
    else:
        requests = [encode(lm, instances[0])]
        twins = {t.name: Twin(t.column, divisor=_units(task, instances[0])) for t in terms}
    owner = tuple(i for i, windows in enumerate(requests) for _ in windows)
    flat = tuple(request for windows in requests for request in windows)
    return SmoothItem((task.name, row), flat, owner, twins)


def reference(task: FrozenTask, row: int) -> str | None:
    """Return a document's reference as a text to generate, or None if it is not right as it stands.

    It is right if the task's own filter and metric give it the best value, 1.
    """
    instance: Any = task.prompts.instances[row][0]
    target: Any = task.task.doc_to_target(instance.doc)
    if isinstance(target, int) and getattr(task.task.config, "doc_to_choice", None) is not None:
        target = task.task.doc_to_choice(instance.doc)[target]  # pyright: ignore
    texts = target if isinstance(target, list) else [target]
    context = str(instance.args[0])
    for text in filter(None, map(str, texts)):
        # Apart from the prompt as in few-shot examples; some metrics count white space.
        for answer in (delimiter(task, context, text) + text, text):
            if is_right(task, row, answer):
                return answer
    return None


def delimiter(task: FrozenTask, context: str, text: str) -> str:
    """Return what stands between a prompt and an answer, as between few-shot examples."""
    is_apart = not context or context[-1].isspace() or text[:1].isspace()
    return "" if is_apart else str(task.task.config.target_delimiter)


def is_right(task: FrozenTask, row: int, answer: str) -> bool:
    """Tell whether a task's filter and metric give a generated text the value 1."""
    instance: Instance = task.prompts.instances[row][0]
    kept = instance.resps, instance.filtered_resps
    set_response(instance, answer)
    try:
        apply_filter(task, [instance])
        filtered = instance.filtered_resps[task.metric.filter]
        values: Any = task.task.process_results(instance.doc, [filtered])
        return task.metric.item(values, task.name, row)[0] == 1.0
    finally:
        instance.resps, instance.filtered_resps = kept


def ending(task: FrozenTask) -> str:
    """Return what ends an answer: the first stop text that is white space, else nothing.

    Other stop texts open the next question of a prompt; no answer is better for writing them.
    """
    until = (task.task.config.generation_kwargs or {}).get("until") or []
    stops = [until] if isinstance(until, str) else until
    return next((stop for stop in stops if stop and not stop.strip()), "")


def _units(task: FrozenTask, instance: "Instance") -> float:
    """Return the words or bytes of a rolling text by which its task divides; 1 for others."""
    if task.output_type != "loglikelihood_rolling":
        return 1.0
    values: Any = task.task.process_results(instance.doc, (0.0,))
    return max(task.metric.item(values, task.name, int(instance.doc_id or 0))[1], 1.0)
