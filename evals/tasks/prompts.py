"""Build lm-eval's requests once per document, and cache its templates. Knows lm-eval.

lm-eval's ``build_all_requests`` draws a bar on stderr and mislabels documents under ``samples=``.
Here its two public steps are called directly in the same order, so the prompts are equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..quiet import one_line
from .chat import Chat
from .task_files import TaskError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


@dataclass(frozen=True, eq=False)
class Prompts:
    """Requests and right answers by row of the task's data.

    Attributes:
        instances: lm-eval's requests of each document, in the order of choices.
        gold: Indices of the right choices of each multiple-choice document; else empty.
        n_choices: Number of choices of each multiple-choice document.
        targets: Target of each document as text, for the fingerprint.
    """

    instances: "Mapping[int, list[Instance]]"
    gold: Mapping[int, tuple[int, ...]]
    n_choices: Mapping[int, int]
    targets: Mapping[int, str]


def build_prompts(
    task: "Task",
    docs: Sequence[Any],
    rows: Mapping[str, Sequence[int]],
    *,
    seed: int,
    chat: Chat,
) -> Prompts:
    """Build the requests of every split, each as lm-eval builds it under ``--samples``.

    The few-shot generator is re-seeded per split, so a split's prompts equal those of lm-eval's
    command line for the split's rows.

    Args:
        task: An lm-eval task; its few-shot generator is re-seeded and its templates are cached.
        docs: Its evaluation documents, in order.
        rows: Rows of ``docs`` by split, ascending.
        seed: Seed of the few-shot examples.
        chat: Chat options and template.

    Raises:
        TaskError: If a prompt cannot be built, or the task samples its answers.
    """
    _refuse_sampling(task)
    _refuse_shots_from_items(task)
    instances: dict[int, list[Instance]] = {}
    for ids in rows.values():
        task.set_fewshot_seed(seed)
        for row in ids:
            instances[row] = _guarded(
                task, row, lambda row=row: _requests(task, docs[row], row, chat)
            )
    gold: dict[int, tuple[int, ...]] = {}
    n_choices: dict[int, int] = {}
    if _has_choices(task):
        for row in instances:
            choices, right = _guarded(task, row, lambda row=row: _answers(task, docs[row]))
            gold[row], n_choices[row] = right, len(choices)
    _memoise(task, [requests[0].doc for requests in instances.values()])
    targets = {
        row: str(_guarded(task, row, lambda row=row: task.doc_to_target(docs[row])))
        for row in instances
    }
    return Prompts(instances, gold, n_choices, targets)


def first_prompt(task: "Task", *, seed: int, chat: Chat) -> Prompts:
    """Build the requests of the first document, as lm-eval does under ``limit=1``.

    Sampled answers and few-shot examples from the items, which a search refuses, are allowed.

    Args:
        task: An lm-eval task; its few-shot generator is re-seeded.
        seed: Seed of the few-shot examples.
        chat: Chat options and template.

    Raises:
        TaskError: If there is no document, or its prompt cannot be built.
    """
    task.set_fewshot_seed(seed)
    doc: Any = next(iter(task.eval_docs), None)
    if doc is None:
        raise TaskError(f"task '{task.task_name}': its data are empty; add documents")
    requests = _guarded(task, 0, lambda: _requests(task, doc, 0, chat))
    gold = {0: _guarded(task, 0, lambda: _answers(task, doc))[1]} if _has_choices(task) else {}
    target = str(_guarded(task, 0, lambda: task.doc_to_target(doc)))
    return Prompts({0: requests}, gold, {}, {0: target})


def _has_choices(task: "Task") -> bool:
    """Tell whether a document's answers are choices."""
    return task.OUTPUT_TYPE == "multiple_choice" and hasattr(task, "doc_to_choice")


def _refuse_sampling(task: "Task") -> None:
    """Raise TaskError if answers are sampled: candidates could not be compared."""
    options = task.config.generation_kwargs or {}
    default = float(options.get("temperature", 0.0)) > 0
    if task.OUTPUT_TYPE == "generate_until" and options.get("do_sample", default):
        raise TaskError(
            f"task '{task.task_name}' samples its answers, so its scores are not repeatable; "
            "set `do_sample: false` in its `generation_kwargs`"
        )


def _refuse_shots_from_items(task: Any) -> None:
    """Raise TaskError if few-shot examples are items: search prompts would show confirm answers.

    Without a few-shot split, lm-eval draws examples from the documents that it evaluates.
    """
    config = task.config
    if not config.num_fewshot or task.fewshot_cfg.samples is not None:
        return
    source = task.fewshot_cfg.split or config.training_split or config.validation_split
    evaluated = config.test_split or config.validation_split
    if source in (None, evaluated):
        raise TaskError(
            f"task '{task.task_name}': few-shot examples must come from other documents than the "
            f"items, got split '{evaluated}' for both; give `fewshot_split`, or `num_fewshot: 0`"
        )


def _guarded(task: "Task", row: int, build: Callable[[], Any]) -> Any:
    """Call ``build``; turn exceptions of lm-eval about a document into a TaskError."""
    from jinja2 import TemplateError

    try:
        return build()
    except (ValueError, AssertionError, KeyError, TypeError, IndexError, TemplateError) as error:
        where = f"task '{task.task_name}': the prompt of doc {row}"
        raise TaskError(f"{where} cannot be built: {one_line(error)}") from error


def _requests(task: Any, doc: Any, row: int, chat: Chat) -> "list[Instance]":
    """Return lm-eval's requests of one document (loop body of ``Task.build_all_requests``)."""
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot,
        system_instruction=chat.options.system_instruction,
        apply_chat_template=chat.options.apply_chat_template,
        fewshot_as_multiturn=chat.options.as_multiturn,
        chat_template=chat.render,
        gen_prefix=task.doc_to_prefix(doc),
    )
    built = task.construct_requests(
        doc=doc,
        ctx=context,
        metadata=(task.config["task"], row, task.config.repeats),
        apply_chat_template=chat.options.apply_chat_template,
        chat_template=chat.render,
    )
    requests = built if isinstance(built, list) else [built]
    return sorted(requests, key=lambda request: request.idx)


def _answers(task: Any, doc: Any) -> tuple[list[str], tuple[int, ...]]:
    """Return the choices and the right indices, as ``ConfigurableTask.process_results`` does."""
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -1
    right = gold if isinstance(gold, list) else [gold]
    return choices, tuple(int(g) for g in right if 0 <= int(g) < len(choices))


def _memoise(task: Any, docs: Sequence[Any]) -> None:
    """Cache a task's rendered templates for these document objects.

    lm-eval compiles a Jinja template per call, several per document, which takes longer than the
    forward pass of a small model.
    """
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        original = getattr(task, name, None)
        if original is not None:
            setattr(task, name, _Memo(original, docs))


class _Memo:
    """Function of a document with a cache for given document objects, by their ids."""

    def __init__(self, function: Callable[..., Any], docs: Sequence[Any]) -> None:
        self._function = function
        self._docs = {id(doc): doc for doc in docs}  # kept alive, so that no id is reused
        self._answers: dict[int, Any] = {}

    def __call__(self, doc: Any, *args: Any) -> Any:
        if args or id(doc) not in self._docs:
            return self._function(doc, *args)
        if id(doc) not in self._answers:
            self._answers[id(doc)] = self._function(doc)
        return self._answers[id(doc)]
