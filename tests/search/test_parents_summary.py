"""Parents, deltas and recipes as text."""

import pytest
import yaml
from heterosis.merge.parents.parent_set import ParentSet
from heterosis.merge.recipe.groups import Grouping
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.merge.statistics.parent_statistics import ParentStatistics
from heterosis.search.config.space import Depth
from heterosis.search.format import recipe_line
from heterosis.search.parents_summary import (
    budget_advice,
    by_thirds,
    coarser_depth,
    delta_lines,
    delta_table,
    parents_line,
    third_name,
)

from ..families import tiny_family
from .spaces import GROUPS, make_space


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    paths = tiny_family(tmp_path_factory.mktemp("family"), n_parents=3, n_layers=4)
    base = paths.pop("base")
    return ParentSet.open(base, paths)


def test_parents_and_their_deltas(parents):
    statistics = ParentStatistics(parents, None).deltas()
    line = parents_line(parents)
    assert "parents: a, b, c match the base:" in line
    assert "4 layers, all finite (base 0." in line
    lines = list(delta_lines(statistics))
    assert len(lines) == 3 + 3
    assert lines[0].startswith("delta a: relative norm ")
    assert "DARE is safe to drop rate 0.0" in lines[0]  # deltas of 0.01 are large
    assert lines[3].startswith("deltas a and b: cosine ")


def test_the_table_has_a_row_per_kind_and_third_of_the_depth(parents):
    statistics = ParentStatistics(parents, None).deltas(by_thirds(Grouping(), parents.n_layers))
    header, *rows = delta_table(statistics, third_name)
    assert header.split("  ")[1] == "layer group"
    for title in ("a: norm", "c: norm", "safe drop", "cosine (mean of pairs)", "sign conflict"):
        assert title in header
    names = [row[2:].split("  ")[0] for row in rows]
    kinds = ("attn", "mlp", "other")
    thirds = [f"{third} {kind}" for third in ("early", "middle", "late") for kind in kinds]
    assert names == ["embed", *thirds, "head"]
    assert len({len(row) for row in (header, *rows)}) == 1


def test_every_layer_group_on_request_and_groups_of_ones_own(parents):
    grouping = Grouping((("*.layers.{layer}.*.q_proj.*", "layers.{layer}.q"),))
    rows = list(delta_table(ParentStatistics(parents, None).deltas(grouping.group)))
    assert sum(".q " in row for row in rows) == 4
    assert len(rows) == 1 + len(parents.groups(grouping))


def test_one_parent_has_no_pairs(parents):
    alone = ParentSet.open(parents.folders["base"], {"a": parents.folders["a"]})
    statistics = ParentStatistics(alone, None).deltas()
    assert len(list(delta_lines(statistics))) == 1
    assert "cosine" not in next(delta_table(statistics))


def test_a_recipe_in_one_line():
    space = make_space(
        method=["della", "linear"],
        depth={"control_points": 2},
        modules=[],
        drop_rate=0.5,
        parameters={"epsilon": 0.1},
        **{"lambda": [0.5, 1.0]},
    )
    recipe = space.decode(space.middle | {"method.all.1": "linear"})
    share = sum(name == "head" or name[7:8] in ("2", "3") for name in GROUPS) / len(GROUPS)
    assert recipe_line(recipe) == (
        f"della {1 - share:.0%} + linear {share:.0%} | a 0.50 drop 0.25 (0.00..0.50) | b 0.50 drop "
        "0.25 (0.00..0.50) | epsilon 0.10 | lambda 0.75"
    )
    plain = Recipe("ties", ("a",), {"embed": Coefficients((0.5,), (0.8,))})
    assert recipe_line(plain) == "ties | a 0.50 drop 0.80"


@pytest.mark.parametrize(
    ("depth", "n_layers", "coarser"),
    [
        ("layers", 12, "{control_points: 5}"),
        ({"control_points": 5}, 12, "{control_points: 2}"),
        ({"blocks": 3}, 12, "constant"),
        ("layers", 2, "constant"),
        ({"control_points": 9}, 4, "{control_points: 2}"),
        ("lines", 12, "constant"),
        ("constant", 12, None),
    ],
)
def test_coarser_depth_is_a_depth_of_a_configuration(
    depth: object, n_layers: int, coarser: str | None
) -> None:
    found = coarser_depth(Depth.model_validate(depth), n_layers)
    assert found == coarser
    if found:
        Depth.model_validate(yaml.safe_load(found))


def test_budget_advice_starts_below_five_trials_a_gene() -> None:
    depth = Depth.model_validate({"control_points": 4})
    assert budget_advice(100, 20, depth, 12) is None
    assert budget_advice(99, 20, depth, 12) == (
        "advice: 99 trials are few for 20 genes; use the coarser `depth: {control_points: 2}`, "
        "or at least 100 trials (5 per gene)"
    )
    assert "search fewer parameters" in str(
        budget_advice(1, 2, Depth.model_validate("constant"), 12)
    )
