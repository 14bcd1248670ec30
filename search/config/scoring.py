"""The sections `tasks`, `guard`, `splits`, `eval` and `workers`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...evals.scores.term_columns import METRIC, TermColumn
from ...evals.tasks.chat import ChatOptions
from .section import Section

CHAT_KEYS = ("apply_chat_template", "system_instruction", "fewshot_as_multiturn")
"""Keys of `eval` that say how prompts are wrapped; lm-eval's words."""


class WorkersSection(Section):
    """Processes that score candidates; with this section the search proceeds by generations."""

    engine: Literal["local", "ray"] = "local"
    """`local`: this process; `ray`: one actor per device, on all machines of a Ray cluster."""
    num: int = Field(default=1, ge=1)
    """Candidates scored at the same time; an upper bound if machines come and go."""
    most: int | None = Field(default=None, ge=1)
    """Workers for which generations are sized; it affects which candidates are proposed, `num` does
    not. Fixed for a study; default: `num` when it begins, at least 4."""
    gpus_per_worker: float = Field(default=1, ge=0)
    """GPUs of each actor; 0: CPU only."""
    cpus_per_worker: float = Field(default=1, ge=0)
    """CPUs of each actor as Ray counts them; the number of threads is `eval.threads`."""
    address: str | None = None
    """Ray cluster: `auto` or `HOST:PORT`; default: one is started on this machine."""
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds after which a candidate fails; default: no limit."""
    generation: int | None = Field(default=None, ge=1)
    """Candidates proposed from the same results; default: the sampler's population, or 16; at
    least `most` where that is above 4 and the sampler's arguments name no population."""
    ahead: int | None = Field(default=None, ge=0)
    """Candidates of the next generation proposed early, for workers that would be idle; default: a
    quarter of `generation`; with `most` above 4 at least `most`, or twice that with racing."""

    @model_validator(mode="after")
    def _check_engine(self) -> WorkersSection:
        if self.engine == "local" and (self.num > 1 or self.timeout is not None):
            raise ValueError(
                "`engine: local` scores one candidate at a time, without a time limit, got `num: "
                f"{self.num}`, `timeout: {self.timeout}`; leave them out, or use `engine: ray`"
            )
        return self


class EvalSection(Section):
    """How models are scored."""

    batch_size: int = Field(default=32, ge=1)
    """Rows per forward pass."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Upper bound of tokens per forward pass of packed requests; default: 256 * `batch_size`."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads of torch; `auto`: measured once, at the start of the study."""
    apply_chat_template: bool = False
    """Whether prompts are rendered with the base tokenizer's chat template, as lm-eval does."""
    system_instruction: str | None = None
    """System turn of the chat template; without a template, text directly before every prompt, as
    in lm-eval: end it with a line break."""
    fewshot_as_multiturn: bool | None = None
    """Whether each few-shot example is a turn; default: as `apply_chat_template`."""

    @model_validator(mode="after")
    def _check_chat(self) -> EvalSection:
        ChatOptions(**self.chat)
        return self

    @property
    def chat(self) -> dict[str, Any]:
        """Arguments of `ChatOptions`."""
        return {name: getattr(self, name) for name in CHAT_KEYS}


class TaskSection(Section):
    """One lm-eval task that candidates are scored on."""

    task: str = Field(min_length=1)
    """lm-eval task name, or path of a task YAML (relative to this configuration)."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples per prompt; default: the task's."""
    metric: str | None = None
    """Metric, or ``metric,filter``; default: the task's first metric."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of this task in the objectives `weighted` and `harmonic`, relative to the others'."""
    optimize: tuple[TermColumn, ...] = (METRIC,)
    """What to optimise: `metric`; `margin` of the right answer over the best wrong one, or its
    `log_likelihood` (nats); `length` of generated answers (tokens, fewer are better). Several with
    the objective `pareto`."""
    max_items: int | None = Field(default=None, ge=1)
    """Upper bound of the task's documents, those of lowest hash; default: all."""

    @field_validator("optimize", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("optimize")
    @classmethod
    def _check_distinct(cls, value: tuple[TermColumn, ...]) -> tuple[TermColumn, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"must name one column or more, each once, got {list(value)}")
        return value


class SplitsSection(Section):
    """How items are split into search items and confirm items."""

    search_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of a task's items that the search may use; the others are confirm items."""
    search_items: int | None = Field(default=None, ge=2)
    """Upper bound of search items per task; default: all of the share."""
    confirm_items: int | None = Field(default=None, ge=2)
    """Upper bound of confirm items per task; default: all of the rest."""
