"""What a person reads about parents and recipes."""

import pytest
from heterosis.merge.facts import ParentFacts
from heterosis.merge.groups import Grouping
from heterosis.merge.parents import ParentSet
from heterosis.merge.recipe import Coefficients, Recipe
from heterosis.search.describe import by_thirds, delta_lines, delta_table, parents_line, third_name
from heterosis.search.format import recipe_line

from ..families import tiny_family
from .test_space import GROUPS, make_space


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    paths = tiny_family(tmp_path_factory.mktemp("family"), n_parents=3, n_layers=4)
    base = paths.pop("base")
    return ParentSet.open(base, paths)


def test_parents_and_their_deltas(parents):
    statistics = ParentFacts(parents, None).statistics()
    line = parents_line(parents)
    assert "parents: a, b, c match the base:" in line
    assert "4 layers, all finite (base 0." in line
    lines = list(delta_lines(statistics))
    assert len(lines) == 3 + 3
    assert lines[0].startswith("delta a: relative norm ")
    assert "DARE is safe to drop rate 0.0" in lines[0]  # deltas of 0.01 are large
    assert lines[3].startswith("deltas a and b: cosine ")


def test_the_table_has_a_row_per_kind_and_third_of_the_depth(parents):
    statistics = ParentFacts(parents, None).statistics(by_thirds(Grouping(), parents.n_layers))
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
    rows = list(delta_table(ParentFacts(parents, None).statistics(grouping.group)))
    assert sum(".q " in row for row in rows) == 4
    assert len(rows) == 1 + len(parents.groups(grouping))


def test_one_parent_has_no_pairs(parents):
    alone = ParentSet.open(parents.folders["base"], {"a": parents.folders["a"]})
    statistics = ParentFacts(alone, None).statistics()
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
