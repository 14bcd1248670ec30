"""Stages from coarse to fine: where each begins, what its sampler knows, and resume."""

import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from heterosis.search.config.config import ConfigError
from heterosis.search.config.load import load_config
from heterosis.search.config.search import SearchSection
from heterosis.search.models.export import export
from heterosis.search.propose.ask_tell import TrialQueue
from heterosis.search.propose.pace import Pace, first_searched
from heterosis.search.propose.stages import Stage, best_of, counts, narrowed, next_stage
from heterosis.search.storage.candidate import SEARCHED, Candidate, candidate_of
from heterosis.search.storage.journal import Journal, lock_folder
from heterosis.search.study.budget import Budget, Limits
from heterosis.search.study.variants import plain_params
from optuna.trial import TrialState, create_trial

from ..conftest import refused
from ..processes import COMMAND, ENVIRONMENT
from ..shuffled import run_shuffled
from ..spaces import make_space
from ..studies import record, run

COARSE = make_space(depth="constant")
FINE = make_space(depth={"control_points": 3})
STAGES = [{"depth": "constant", "trials": 5}, {"width": 0.4}]


def at(number: int, value: float | None, weight: float = 0.5, **changes) -> Candidate:
    """A candidate with one weight everywhere."""
    recipe = COARSE.decode(dict.fromkeys(COARSE.genes, weight))
    kind = changes.pop("kind", SEARCHED)
    return Candidate(number, f"candidate {number}", kind, recipe, value, **changes)


def trials(candidates):
    """Their trials; a baseline's genotype lies in the coarse space."""
    state = TrialState.COMPLETE
    blank = create_trial(state=state, value=0.0)
    return [blank for _ in candidates]


def test_a_stage_begins_around_the_best_within_the_bounds():
    found = [at(0, 0.4, 0.2), at(1, 0.7, 0.9), at(2, None, 0.5)]
    start = next_stage(Stage(FINE, width=0.4), COARSE, trials(found), found)
    assert start.around is found[1]
    assert set(start.middle.values()) == {0.9}
    for bounds in start.space.genes.values():
        assert bounds == (pytest.approx(0.7), 1.0)
    assert [(p["weight.a.attn.2"], c.number) for p, c in start.seed_trials] == [(0.9, 1)]
    assert start.enqueued == ()
    assert "around candidate 1 (0.7000)" in start.line
    assert "0.4 of each interval" in start.line


def test_all_of_the_space_is_searched_where_no_width_is_given():
    found = [at(0, 0.4, 0.2), at(1, 0.7, 0.9)]
    start = next_stage(Stage(FINE), COARSE, trials(found), found)
    assert start.space == FINE
    assert [c.number for _, c in start.seed_trials] == [0, 1]


def test_what_the_next_space_cannot_express_is_tried_first():
    recipe = FINE.decode({gene: 0.1 * i / 2 for i, gene in enumerate(FINE.genes)})
    found = [replace(at(0, 0.9), recipe=recipe)]
    start = next_stage(Stage(COARSE, width=0.5), FINE, trials(found), found)
    assert start.seed_trials == ()
    assert start.enqueued == ((None, start.middle),)
    assert "tried first as near" in start.line


def test_a_stage_without_a_best_candidate_has_the_full_space():
    found = [at(0, None), at(1, 0.4, kind="parent")]
    start = next_stage(Stage(FINE, width=0.4), COARSE, trials(found), found)
    assert (start.space, start.middle, start.line) == (FINE, None, None)


@pytest.mark.parametrize(
    ("candidates", "number"),
    [
        ([at(0, 0.4), at(1, 0.6), at(2, 0.6)], 1),  # the earlier of equals
        ([at(0, 0.4), at(1, 0.6, raced=True)], 0),
        ([at(0, 0.4, raced=True), at(1, 0.6, raced=True)], 1),
        ([at(0, 0.9, kind="parent"), at(1, 0.8, kind="base"), at(2, 0.6)], 2),
        ([at(0, 0.7, kind="uniform"), at(1, 0.6)], 0),
        ([at(0, 0.5, kind="uniform"), at(1, 0.6, raced=True)], 1),
        ([at(0, 0.3, values=(0.0, 0.6)), at(1, 0.4, values=(0.3, 0.5))], 1),  # several: the mean
    ],
)
def test_the_best_so_far_is_a_merge(candidates, number):
    _, best = best_of([(c.recipe, c) for c in candidates])
    assert best.number == number


def test_a_seed_of_masks_has_no_neighbours():
    space = make_space(method="dare_ties", mask_seed=[0, 999], drop_rate=[0.2, 0.8])
    near = narrowed(space, space.middle, 0.5)
    assert near.genes["mask_seed"] == space.genes["mask_seed"]
    assert near.genes["drop_rate.a.attn.0"] == (pytest.approx(0.35), pytest.approx(0.65))


def test_genes_are_reset_to_the_uniform_merge_though_a_stage_is_narrow():
    near = narrowed(FINE, dict.fromkeys(FINE.genes, 0.9), 0.2)
    assert set(plain_params(near).values()) == {0.8}
    assert set(plain_params(FINE).values()) == {0.5}  # a winner's stage is kept whole for that


@pytest.mark.parametrize(
    ("stages", "found"),
    [
        ((Stage(COARSE, until_asked=5), Stage(FINE)), [5, 7]),
        ((Stage(COARSE, until_asked=50), Stage(FINE)), [12, 0]),
        ((Stage(COARSE, until_used=0.4), Stage(FINE)), [5, 7]),
        (
            (Stage(COARSE, until_used=1 / 3), Stage(COARSE, until_used=2 / 3), Stage(FINE)),
            [4, 4, 4],
        ),
    ],
)
def test_a_budget_is_shared_by_the_stages(stages, found):
    assert counts(stages, 12) == found


def stages_of(folder) -> list[int]:
    return [c.stage for c in map(candidate_of, Journal(folder).trials) if c.is_searched]


def staged(small_search, stages=STAGES, **search):
    given = {"trials": 14, "racing": {"first": 10, "alpha": 0.3}} | search
    return small_search.write(search=given, stages=stages)


def test_a_search_in_stages(small_search):
    outcome, text = run(staged(small_search))
    assert outcome.finished
    assert stages_of(small_search.results) == [0] * 5 + [1] * 9
    assert "search, stage 1 of 2: 14 candidates" in text
    assert "search, stage 2 of 2: 14 candidates, 5 known already" in text
    assert "8 genes (control_points 2 x attn/mlp, weights in [0, 1]), 0.4 of each" in text
    known = Journal(small_search.results).trials
    assert {len(t.params) for t in known[-9:]} == {8}
    assert {len(t.params) for t in known[-14:-9]} == {4}
    for low, high in ((d.low, d.high) for t in known[-9:] for d in t.distributions.values()):
        assert 0 <= low < high <= 1
        assert high - low <= 0.4 + 1e-9


def test_a_search_is_refined_to_tensors_and_exported(small_search, tmp_path):
    path = small_search.write(
        stages=[{"depth": "constant", "trials": 2}, {"depth": "tensors"}], search={"trials": 4}
    )
    outcome, text = run(path)
    assert outcome.finished
    assert "genes (tensors, weights in [0, 1])" in text
    last = candidate_of(Journal(small_search.results).trials[-1])
    assert last.recipe is not None and "layers.3.mlp_up_proj" in last.recipe.coefficients
    export(small_search.results, tmp_path / "out", trial=last.number)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_stage_after_tensors_is_as_fine(small_search):
    stages = [{"depth": "tensors", "share": 0.5}, {"depth": "layers"}]
    with pytest.raises(ConfigError, match=r"stages\.1`: a stage after `depth: tensors` .*`layers`"):
        load_config(small_search.write(stages=stages))


SAMPLERS = {
    "CmaEsSampler": {"popsize": 4},
    "TPESampler": {"n_startup_trials": 4},
    "NSGAIISampler": {"population_size": 3},
    "QMCSampler": {},
}


def simulated(folder, section: SearchSection, pace: Pace, interrupted: bool, until: int = 40):
    """A search of three stages without models, begun anew after each candidate or never."""
    plan = (
        Stage(COARSE, pace, "stage 1 of 3", until_used=0.3),
        Stage(make_space(depth={"control_points": 2}), pace, "stage 2 of 3", 0.5, until_used=0.6),
        Stage(make_space(depth="layers"), pace, "stage 3 of 3", 0.5),
    )
    budget = Budget(Limits(items=until), 0)
    with lock_folder(folder):
        while True:
            journal = Journal(folder, write=True)
            found = [candidate_of(trial) for trial in journal.trials]
            queue = TrialQueue(plan, section)
            queue.restore(journal.trials, found)
            if not found:
                given = at(0, 0.5, 0.5, kind="uniform", items=1)
                journal.append(queue.add(dict.fromkeys(COARSE.genes, 0.5), given))
                found.append(given)
            waiting, n_finished = deque(), 0
            while True:
                queue.tell()
                limit = asked_into(waiting, queue, budget, journal, found)
                if not waiting:
                    assert limit
                    return found, [trial.params for trial in journal.trials]
                pending = waiting.popleft()
                weights = [c.weights[0] for c in pending.candidate.recipe.coefficients.values()]
                value = None if weights[0] < 0.2 else -sum((w - 0.7) ** 2 for w in weights)
                done = replace(
                    pending.candidate, value=value, items=1, raced=bool(weights[1] < 0.4)
                )
                journal.append(queue.finish(pending, done))
                found.append(done)
                n_finished += 1
                if interrupted and n_finished == 1 + len(found) % 3:
                    break


def asked_into(waiting, queue, budget, journal, found):
    """As `Study._ask_into`."""
    while queue.can_ask:
        if queue.is_between_stages:
            queue.begin_stage(journal.trials, found)
        known = first_searched(found, queue.n_known)
        ahead = queue.n_asked - queue.n_known
        limit = budget.spent(known, ahead)
        if limit is not None:
            return limit
        if queue.end_stage(budget.used(known, ahead)):
            continue
        waiting.append(queue.ask(len(found) + queue.n_unfinished))
    return None


@pytest.mark.parametrize("pace", [Pace(), Pace(4, 1)], ids=["one by one", "generations"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stages_interrupted_anywhere_resume_to_the_same_candidates(tmp_path, sampler, pace):
    section = SearchSection(sampler=sampler, sampler_args=SAMPLERS[sampler], run_seed=3)
    whole, params = simulated(tmp_path / "whole", section, pace, interrupted=False)
    pieces, again = simulated(tmp_path / "pieces", section, pace, interrupted=True)
    assert params == again
    assert whole == pieces
    stages = [c.stage for c in whole if c.is_searched]
    assert stages == sorted(stages)
    assert set(stages) == {0, 1, 2}
    assert len(stages) == 40
    if pace == Pace():
        assert stages.count(0) == 12  # 0.3 of 40 items, at 1 each


@pytest.mark.parametrize(
    ("sampler", "workers"), [("CmaEsSampler", None), ("TPESampler", {"generation": 2, "ahead": 1})]
)
def test_an_interrupted_staged_search_ends_the_same(small_search, tmp_path, sampler, workers):
    shares = [{"depth": "constant", "share": 0.4}, {"width": 0.5}, {"depth": "layers"}]
    search = {"items": 190, "trials": None, "racing": {"first": 10, "alpha": 0.3}}
    search |= {"sampler": sampler, "sampler_args": SAMPLERS[sampler]}
    path = small_search.write(search=search, stages=shares, workers=workers)
    run_shuffled(path, tmp_path / "whole", 3)
    assert set(stages_of(tmp_path / "whole")) == {0, 1, 2}
    for seed, count in enumerate((3, 1, 2)):
        asked = iter([False] * (3 + seed % 2))
        run_shuffled(path, tmp_path / "parts", count, seed, lambda asked=asked: next(asked, True))
    run_shuffled(path, tmp_path / "parts", 2, 9)
    assert record(tmp_path / "parts") == record(tmp_path / "whole")
    assert stages_of(tmp_path / "parts") == stages_of(tmp_path / "whole")


def test_the_winner_is_ablated_in_its_stage(small_search):
    path = staged(small_search, dissect=True, trials=7)
    outcome, _ = run(path)
    ablation = outcome.board.ablation
    points = {name.rpartition(".")[2] for name in ablation.effects}
    assert points == ({"0"} if ablation.of.stage == 0 else {"0", "1"})


def test_a_staged_study_goes_on_in_its_last_stage(small_search, heterosis):
    run(staged(small_search, trials=8))
    assert heterosis("search", "--continue", small_search.results, "--trials", 4)[0] == 0
    assert stages_of(small_search.results) == [0] * 5 + [1] * 7


@pytest.mark.slow
def test_a_staged_search_killed_many_times_ends_the_same(small_search, tmp_path):
    shares = [{"depth": "constant"}, {"width": 0.5}, {"depth": "layers", "width": 0.3}]
    path = staged(small_search, shares, trials=60, finalists=3)
    assert (
        subprocess.run(
            [*COMMAND, "search", path, "--results", tmp_path / "whole"],
            env=ENVIRONMENT,
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    script = Path(__file__).parents[1] / "study/kill_script.py"
    command = [sys.executable, script, path, tmp_path / "killed", "36", "7"]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    again = [*COMMAND, "search", path, "--results", tmp_path / "killed"]
    assert subprocess.run(again, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0
    assert record(tmp_path / "killed") == record(tmp_path / "whole")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"depth": "constant"}], "`stages` must be two or more, got one; move its keys to"),
        ([{}, {"trials": 9}], "last stage takes the rest of the budget, got `trials: 9`"),
        ([{}, {"share": 0.9}], "last stage takes the rest of the budget, got `share: 0.9`"),
        (
            [{"width": 0.3}, {}],
            "first stage has no earlier candidate to center on, got `width: 0.3`; leave",
        ),
        (
            [{"trials": 3}, {"share": 0.3}, {}],
            "or none has, got `trials: 3`, `share: 0.3`",
        ),
        ([{"trials": 3}, {}, {}], "or none has, got `trials: 3`, nothing; give `trials` to each"),
        (
            [{"trials": 12}, {}],
            "12 trials before the last one, got `search.trials: 12` in total",
        ),
        ([{"share": 0.7}, {"share": 0.5}, {}], "shares that sum to 1.2; lower them"),
        ([{"trials": 3, "share": 0.3}, {}], "exclude each other, got `trials: 3` and `share: 0.3`"),
        ([{"dept": "constant"}, {}], "unknown key `dept`; did you mean `depth`?"),
        ([3, {}], "must be a mapping with keys trials, share, width, method, depth"),
        ([{"depth": "flat"}, {}], "`stages.0`: depth: must be `constant`, `lines`"),
        (
            [{"drop_rate": 0.5}, {}],
            "`stages.0`: `space.drop_rate` is not used by `task",
        ),
        (
            [{"modules": ["mpl"]}, {}],
            "`stages.0`: `space.modules` must name module kinds, got",
        ),
        ([{"weight": [1, 0]}, {}], r"`stages.0`: weight: must be a number or [low, high]"),
    ],
)
def test_each_mistake_is_reported(small_search, stages, message):
    with pytest.raises(ConfigError) as told:
        load_config(small_search.write(stages=stages))
    assert message in str(told.value)


def test_an_unknown_kind_is_reported_with_its_stage(small_search, heterosis):
    stages = [{"modules": ["attn", "vision"]}, {}]
    path = small_search.write(stages=stages)
    assert "`stages.0`: `space.modules` names `vision`" in refused(heterosis("search", path))


def test_a_stage_without_genes_is_refused(small_search, heterosis):
    path = small_search.write(stages=[{"weight": 0.5}, {}])
    told = refused(heterosis("search", path))
    assert "`space` of stage 1 of 2 leaves nothing to search" in told


def test_other_stages_than_a_study_was_begun_with_are_refused(small_search, heterosis):
    run(staged(small_search, trials=6))
    path = staged(small_search, [{"depth": "constant", "trials": 5}, {"width": 0.5}], trials=6)
    assert "stages must not change within" in refused(heterosis("search", path))
    plain = small_search.write(
        search={"trials": 6, "racing": {"first": 10, "alpha": 0.3}}, stages=[]
    )
    assert "stages must not change within" in refused(heterosis("search", plain))


def test_check_states_each_stages_dimension_and_advises(small_search, heterosis):
    code, out, _ = heterosis("check", staged(small_search, trials=30))
    assert code == 0
    assert "space, stage 1 of 2: 4 genes (constant x attn/mlp, weights in [0, 1])" in out
    assert (
        "space, stage 2 of 2: 8 genes (control_points 2 x attn/mlp, weights in [0, 1]), 0.4" in out
    )
    assert "stage 1 of 2: advice: 5 trials are few for 4 genes" in out
    assert "stage 2 of 2: advice: 25 trials are few for 8 genes; use the coarser" in out
