"""Render one prompt of a task for users to read. Knows lm-eval's tasks; knows no model.

It is the first prompt of lm-eval's command line: the task's first document, with the few-shot
examples that lm-eval draws for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..quiet import quiet
from .catalogue import refuse_missing_data
from .chat import Chat
from .prompts import first_prompt
from .tasks import FEWSHOT_SEED, TaskSpec, leaf_tasks, task_objects

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_NAMED = 12  # tasks of a group listed by name


def show_task(task: str, *, num_fewshot: int | None = None, chat: Chat | None = None) -> list[str]:
    """Render one prompt of a task, or of the first task of a group.

    Args:
        task: lm-eval's name, or the path of a YAML file.
        num_fewshot: Examples in the prompt; None: the task's own number.
        chat: Chat options and template; None: plain text.

    Returns:
        Lines; the prompt is one of them and contains newlines.

    Raises:
        TaskError: If the task or its data cannot be used, or the prompt cannot be built.
        ValueError: If ``num_fewshot`` is below 0.
    """
    spec = TaskSpec(task, num_fewshot=num_fewshot)
    with quiet():
        refuse_missing_data([spec.task])
        leaves = leaf_tasks(task_objects(task))
        return [*_members(task, leaves), *_shown(leaves[0], num_fewshot, chat or Chat())]


def _members(task: str, leaves: "list[Task]") -> Iterator[str]:
    """Yield a line that lists the tasks of a group."""
    if len(leaves) > 1:
        names = ", ".join(str(leaf.task_name) for leaf in leaves[:_NAMED])
        rest = f" and {len(leaves) - _NAMED} more" if len(leaves) > _NAMED else ""
        yield f"{task}: {len(leaves)} tasks: {names}{rest}; of the first:"


def _shown(task: Any, num_fewshot: int | None, chat: Chat) -> Iterator[str]:
    """Yield the lines about a task's first document."""
    shots = task.config.num_fewshot if num_fewshot is None else num_fewshot
    task.set_config("num_fewshot", shots or 0)
    prompts = first_prompt(task, seed=FEWSHOT_SEED, chat=chat)
    metrics = ", ".join(task.aggregation()) or "none"
    total = len(task.eval_docs)
    yield (
        f"{task.task_name}: {task.OUTPUT_TYPE}, {shots or 0}-shot, "
        f"{total} document{'' if total == 1 else 's'}, metrics: {metrics}"
    )
    arguments = [request.args for request in prompts.instances[0]]
    context = str(arguments[0][0])
    yield f"--- prompt of document 0, {len(context)} characters"
    yield context
    yield from _expected(task.OUTPUT_TYPE, arguments, prompts.gold.get(0, (0,)), prompts.targets[0])


def _expected(
    output_type: str, arguments: list[tuple[Any, ...]], gold: tuple[int, ...], target: str
) -> Iterator[str]:
    """Yield the lines about the answer: continuations, target or settings."""
    if output_type == "generate_until":
        yield f"--- the model continues it; settings {arguments[0][1]}"
        yield f"--- right answer: {target!r}"
    elif output_type == "loglikelihood_rolling":
        yield "--- every token is scored"
    else:
        yield "--- continuations, each scored; * is right"
        for number, (context, continuation) in enumerate(arguments):
            other = "" if context == arguments[0][0] else f" after {str(context)!r}"
            yield f"{'*' if number in gold else ' '} {continuation!r}{other}"
