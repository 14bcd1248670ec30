"""Log-likelihoods of every architecture equal lm-eval's, by ``evaluate()`` with ``HFLM``.

Float32 answers are equal but for the order of sums. In bfloat16 a logit between 8 and 16 is known
to 1/16, so two right ways to score differ by up to `TOLERANCE` nats per scored token; answers are
the same wherever the best choice leads by more than both choices' tolerance.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.tasks.splits import Splits
from heterosis.evals.tasks.tasks import TaskSpec, load_tasks

from ..reference import BATCH, load_for_lm_eval, reference
from ..tiny_models import tiny_model, write_tasks

TOLERANCE = 0.12  # nats per token: two units in the last place of a bfloat16 logit of 8 to 16
METRICS = {"mc": "acc", "mc_5shot": "acc_norm", "mc_first": "acc_norm", "letters": "acc"} | {
    "ll": "acc",
    "ll_bare": "perplexity",
    "rolling": "byte_perplexity",
}
CHOICES = ("mc", "mc_5shot", "mc_first", "letters")
PACKED = ("llama", "gpt_neox", "gemma2", "qwen2", "qwen3", "gemma3", "phi")
PATHS: dict[str, str] = {**dict.fromkeys(PACKED, "packed"), "mamba": "flat"}
EVERY_DAY = [("qwen2", "float32"), ("qwen3", "float32"), ("gemma3", "float32"), ("phi", "float32")]
EVERY_DAY += [("mamba", "float32"), ("llama", "bfloat16"), ("gemma3", "bfloat16")]
THE_REST = [(a, d) for d in ("float32", "bfloat16") for a in PATHS if (a, d) not in EVERY_DAY]


@dataclass
class Case:
    """One model's answers: lm-eval's samples by task and document, and ours."""

    dtype: str
    scorer: Scorer
    scores: Any
    results: dict[str, Any]

    def pairs(self, name: str) -> Any:
        """Of each document: our requests and lm-eval's sample."""
        (task,) = [task for task in self.scorer.tasks if task.name == name]
        samples = {s["doc_id"]: s for s in self.results["samples"][name]}
        rows = task.doc_ids["search"]
        assert sorted(samples) == sorted(rows)
        own = task.instances("search")
        return [(instances, samples[row]) for row, instances in zip(rows, own, strict=True)]


def certify(arch: str, dtype: str, folder: Any, tokenizer: Any, n: int) -> Case:
    model = tiny_model(arch, seed=3, dtype=dtype)
    paths = {name: path for name, path in write_tasks(folder, n).items() if name in METRICS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        results = reference(model, tokenizer, load_for_lm_eval(list(paths.values())))
        specs = [TaskSpec(str(paths[name]), metric=m) for name, m in METRICS.items()]
        tasks = load_tasks(specs, splits=Splits(1.0))
        scorer = Scorer(tasks, model, tokenizer, batch_size=BATCH)
        assert scorer.self_check().path == PATHS[arch]
        return Case(dtype, scorer, scorer.score("search"), results)


def names(pairs: list[tuple[str, str]]) -> list[str]:
    return ["-".join(pair) for pair in pairs]


@pytest.fixture(scope="module", params=EVERY_DAY, ids=names(EVERY_DAY))
def few(request, tmp_path_factory, tokenizer) -> Case:
    arch, dtype = request.param
    return certify(arch, dtype, tmp_path_factory.mktemp("few"), tokenizer, 6)


@pytest.fixture(scope="module", params=THE_REST, ids=names(THE_REST))
def rest(request, tmp_path_factory, tokenizer) -> Case:
    arch, dtype = request.param
    return certify(arch, dtype, tmp_path_factory.mktemp("rest"), tokenizer, 24)


@pytest.mark.parametrize("name", METRICS)
def test_log_likelihoods_and_answers_are_lm_evals(name, few):
    assert_equal(few, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_those_of_every_other_architecture_and_dtype_are(name, rest):
    assert_equal(rest, name)


def test_enough_answers_were_compared(few):
    """Most choices must lead by more than the tolerance, or equal answers would say nothing."""
    clear_cases = [clear for name in CHOICES for *_, clear in compared(few, name)]
    assert np.mean(clear_cases) > (0.9 if few.dtype == "float32" else 0.4)


def assert_equal(case: Case, name: str) -> None:
    values = case.scores.value[case.scores.rows(name)]
    for (off, allowed, sample, clear), value in zip(compared(case, name), values, strict=True):
        assert (off <= allowed).all()
        assert not clear or value == sample[METRICS[name]]
    if case.dtype == "float32":
        expected = case.results["results"][name][f"{METRICS[name]},none"]
        assert case.scores.task_score(name).value == pytest.approx(expected, rel=1e-5)


def compared(case: Case, name: str) -> Any:
    """Of each document: differences (n,), those allowed, lm-eval's sample, is its answer clear."""
    for instances, sample in case.pairs(name):
        ours = np.array([first(i.resps[0]) for i in instances])
        theirs = np.array([first(r[0]) for r in sample["resps"]])
        allowed = tolerances(case, instances) + 1e-6 * np.abs(theirs)
        clear = name in CHOICES and leads(instances, theirs, allowed, METRICS[name])
        yield np.abs(ours - theirs), allowed, sample, clear


def first(answer: Any) -> float:
    return answer[0] if isinstance(answer, tuple | list) else answer


def tolerances(case: Case, instances: Any) -> Any:
    """Nats by which each request's log-likelihood may differ (n,)."""
    encode = case.scorer.lm.tok_encode
    each = 1e-6 if case.dtype == "float32" else TOLERANCE
    return np.array([each * len(encode(i.args[-1])) + 1e-5 for i in instances])


def leads(instances: Any, lls: Any, allowed: Any, metric: str) -> bool:
    """Whether the best choice stays best when all are off by as much as is allowed."""
    spread = [len(i.args[1].lstrip()) if metric == "acc_norm" else 1 for i in instances]
    low, high = (lls - allowed) / spread, (lls + allowed) / spread
    best = int(np.argmax(lls / spread))
    return bool(low[best] > np.delete(high, best).max())
