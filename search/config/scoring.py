"""The sections `tasks`, `guard`, `splits`, `eval` and `workers`. Knows no torch, no Optuna."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...evals.scores.term_columns import METRIC, TermColumn
from ...evals.tasks.chat import ChatOptions
from .section import Section

CHAT_KEYS = ("apply_chat_template", "system_instruction", "fewshot_as_multiturn")
"""Keys of `eval` that say how prompts are wrapped; lm-eval's words."""


class WorkersSection(Section):
    """Who scores the candidates; with this section the search goes by generations."""

    engine: Literal["local", "ray"] = "local"
    """`local`: this process; `ray`: one actor per device, on all machines of a Ray cluster."""
    num: int = Field(default=1, ge=1)
    """Candidates scored at the same time: the most that may ever be, if machines come and go."""
    most: int | None = Field(default=None, ge=1)
    """Workers that generations are laid out for. Which candidates there are follows from it, never
    from `num`; default: `num` as the study begins, at least 4. A study keeps it."""
    gpus_per_worker: float = Field(default=1, ge=0)
    """Of each actor; 0 for CPUs."""
    cpus_per_worker: float = Field(default=1, ge=0)
    """Of each actor: what Ray counts, and the number of threads is `eval.threads`."""
    address: str | None = None
    """Of a Ray cluster: `auto`, or `HOST:PORT`; without one it is started on this machine."""
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which a candidate has failed."""
    generation: int | None = Field(default=None, ge=1)
    """Candidates proposed from the same results; default: the sampler's population, or 16; as many
    as `most` where that is more than 4 and the sampler is given no population."""
    ahead: int | None = Field(default=None, ge=0)
    """Candidates of the next generation proposed beforehand, for workers that would wait;
    default: a quarter of `generation`; where `most` is more than 4, at least `most`, and twice that
    if candidates are raced."""

    @model_validator(mode="after")
    def _of_engine(self) -> WorkersSection:
        if self.engine == "local" and (self.num > 1 or self.timeout is not None):
            raise ValueError(
                "`engine: local` scores one candidate at a time and cannot break off, got `num: "
                f"{self.num}`, `timeout: {self.timeout}`; leave them out, or take `engine: ray`"
            )
        return self


class EvalSection(Section):
    """How models are scored."""

    batch_size: int = Field(default=32, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a forward pass where requests are packed; default: 256 for each of
    `batch_size`."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads of torch; `auto` measures at the start of the study and keeps to it."""
    apply_chat_template: bool = False
    """Whether prompts are rendered by the base tokenizer's chat template, as lm-eval does."""
    system_instruction: str | None = None
    """The system's turn in a chat template; without one, text that stands directly before every
    prompt, as in lm-eval: end it with a line break."""
    fewshot_as_multiturn: bool | None = None
    """Whether few-shot examples are turns of their own; default: as `apply_chat_template`."""

    @model_validator(mode="after")
    def _turns_of_a_template(self) -> EvalSection:
        ChatOptions(**self.chat)
        return self

    @property
    def chat(self) -> dict[str, Any]:
        """Arguments of `ChatOptions`."""
        return {name: getattr(self, name) for name in CHAT_KEYS}


class TaskSection(Section):
    """One lm-eval task that candidates are scored on."""

    task: str = Field(min_length=1)
    """lm-eval task name, or the path of a task YAML (relative to this configuration)."""
    num_fewshot: int | None = Field(default=None, ge=0)
    metric: str | None = None
    """Metric, or ``metric,filter``; default: the task's first metric."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of this task in the objectives `weighted` and `harmonic`, relative to the others'."""
    optimize: tuple[TermColumn, ...] = (METRIC,)
    """What counts of it: `metric`; `margin` of the right answer over its best rival, or its
    `log_likelihood` (nats); `length` of generated answers (tokens, fewer are better). Several where
    the objective is `pareto`."""
    max_items: int | None = Field(default=None, ge=1)
    """At most this many docs of the task, those of lowest hash; default: all."""

    @field_validator("optimize", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("optimize")
    @classmethod
    def _each_once(cls, value: tuple[TermColumn, ...]) -> tuple[TermColumn, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"must name one column or more, each once, got {list(value)}")
        return value


class SplitsSection(Section):
    """Which items the search sees, and which are kept for the confirmation."""

    search_share: float = Field(default=0.5, gt=0, lt=1)
    search_items: int | None = Field(default=None, ge=2)
    """At most this many search items per task; default: all in the share."""
    confirm_items: int | None = Field(default=None, ge=2)
