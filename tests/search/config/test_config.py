"""The configuration file: what is accepted, and the message for each mistake."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from heterosis.merge.recipe.methods import METHODS
from heterosis.search import config
from heterosis.search.config.config import ConfigError
from heterosis.search.config.load import find_config, load_config

MINIMAL = """
name: tiny
base: ./models/base
parents: {a: ./models/a, b: ./models/b}
tasks:
  - task: tasks/a.yaml
"""


def load(tmp_path: Path, text: str):
    path = tmp_path / "search.yaml"
    path.write_text(text)
    return load_config(path)


def test_paths_are_taken_from_the_files_own_directory(tmp_path):
    config = load(tmp_path, MINIMAL)
    assert config.base == tmp_path / "models/base"
    assert config.parents["b"] == tmp_path / "models/b"
    assert config.tasks[0].task == str(tmp_path / "tasks/a.yaml")
    assert config.results_folder == Path("results/tiny")


def test_home_and_environment_are_expanded_and_names_of_tasks_are_left(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("MODELS", "/models")
    text = MINIMAL.replace("./models/base", "~/base").replace("./models/a", "$MODELS/a")
    config = load(tmp_path, text.replace("tasks/a.yaml", "arc_easy"))
    assert config.base == Path("/somewhere/base")
    assert config.parents["a"] == Path("/models/a")
    assert config.tasks[0].task == "arc_easy"


def test_what_looks_like_a_hub_id_is_one_unless_such_a_directory_is_there(tmp_path):
    text = MINIMAL.replace("./models/base", "models/base").replace(
        "./models/a", "some-org/a_7B@v1.0"
    )
    config = load(tmp_path, text)
    assert (config.base, config.parents["a"]) == ("models/base", "some-org/a_7B@v1.0")
    assert type(config).model_validate(config.to_dict()) == config
    (tmp_path / "models/base").mkdir(parents=True)
    config = load(tmp_path, text)
    assert config.base == tmp_path / "models/base"


def test_a_number_is_the_interval_that_holds_it_alone(tmp_path):
    config = load(tmp_path, MINIMAL + "space: {weight: [0, 2], lambda: 0.7}\n")
    assert config.space.weight == (0, 2)
    assert config.space.lambda_ == (0.7, 0.7)
    assert config.space.drop_rate == (0, 0)


def test_a_config_survives_the_journal(tmp_path):
    config = load(tmp_path, MINIMAL + "space: {depth: {control_points: 3}, lambda: [0.5, 1.5]}\n")
    assert type(config).model_validate(config.to_dict()) == config


@pytest.mark.parametrize(
    ("depth", "shape", "count"),
    [
        ("constant", "constant", 1),
        ("lines", "lines", 1),
        ("layers", "layers", 1),
        ("{control_points: 4}", "control_points", 4),
        ("{blocks: 2}", "blocks", 2),
    ],
)
def test_depth_shapes(tmp_path, depth, shape, count):
    config = load(tmp_path, MINIMAL + f"space: {{depth: {depth}}}\n")
    assert (config.space.depth.shape, config.space.depth.count) == (shape, count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smapler: x\n", r"unknown key `smapler`; known: name, base"),
        ("search: {trails: 3}\n", r"search: unknown key `trails`; did you mean `trials`\?"),
        ("space: {wieght: 1}\n", r"space: unknown key `wieght`; did you mean `weight`\?"),
        (
            "merge: {method: tise}\n",
            r"merge.method: must be a known .* got `tise`; did you mean `ties`\?",
        ),
        ("merge: {dtype: int8}\n", r"merge.dtype: .*got 'int8'"),
        ("merge: {compile: maybe}\n", r"merge.compile: must be auto, true or false, got 'maybe'$"),
        ("merge: {placement: moon}\n", r"merge.placement: .* or mapped, got 'moon'$"),
        ("merge: {tokenizer: mine}\n", r"merge.tokenizer: must be base or union, got 'mine'$"),
        ("merge: {device_map: 3}\n", r"merge.device_map: must be auto, balanced, .* got 3$"),
        ("merge: {device_map: autoo}\n", r"merge.device_map: .*'autoo'; did you mean `auto`\?$"),
        ("merge: {device_map: {}}\n", r"merge.device_map: .* module names with devices, got {}$"),
        ("merge: {device_map: {1: cpu}}\n", r"merge.device_map: .*, got {1: 'cpu'}$"),
        ("merge: {device_map: {lm_head: yes}}\n", r"merge.device_map: .* got {'lm_head': True}$"),
        (
            "merge: {device: cpu, device_map: auto}\n",
            "`merge.device_map` decides where the model is, got `merge.device: cpu` as well",
        ),
        ('merge: {layer_groups: {"*": "A"}}\n', r"merge.layer_groups: .*got 'A'"),
        ('merge: {layer_groups: {"*": "layers.{layer}.q"}}\n', r"only if its pattern does"),
        ("search: {trials: -1}\n", r"search.trials: must be at least 0, got -1"),
        ("search: {trials: many}\n", r"search.trials: must be a whole number, got 'many'"),
        ("space: {drop_rate: [0.2, 1.0]}\n", r"`drop_rate` must be in \[0, 1\), got \[0.2, 1.0\]"),
        ("space: {weight: [1, 0]}\n", r"space.weight: must be a number or \[low, high\]"),
        ("space: {weight: [.nan, 1]}\n", r"space.weight.*finite"),
        (
            "space: {depth: {control_points: 0}}\n",
            r"space.depth: must be `constant`, `lines`, `layers`",
        ),
        ("space: {depth: sideways}\n", r"space.depth: must be .* got 'sideways'$"),
        ("space: {depth: layrs}\n", r"space.depth: .* got 'layrs'; did you mean `layers`\?$"),
        ("space: {depth: {block: 3}}\n", r"got {'block': 3}; did you mean `blocks`\?$"),
        ("space: {modules: [attn, attn]}\n", r"`modules` must name each kind once"),
        (
            "space: {modules: [atn]}\n",
            r"`space.modules` must name module kinds, got `atn`; did you mean `attn`\?",
        ),
        ("space: {drop_rate: 0.5}\n", r"`space.drop_rate` is not used by `task_arithmetic`"),
        ("space: {method: [ties]}\n", r"space.method: must name two or more methods, each once"),
        ("space: {method: [ties, ties]}\n", r"space.method: must name two or more methods"),
        ("space: {method: [ties, tis]}\n", r"space.method.1: must be a known .* mean `ties`"),
        (
            "merge: {method: ties}\nspace: {method: [ties, linear]}\n",
            r"`merge.method` \(ties\) and `space.method` exclude each other",
        ),
        (
            "space: {method: [linear, slerp], drop_rate: 0.5}\n",
            r"`space.drop_rate` is not used by `linear`, `slerp`; leave it out",
        ),
        ("search: {objective: harmonc}\n", r"objective: must be a rule .* mean `harmonic`\?"),
        ("space: {slope: [0, 1]}\n", r"`slope` belongs to `depth: lines`, got depth `control_po"),
        ("space: {depth: lines, slope: [1, 0]}\n", r"space.slope: must be a number or \[low"),
        (
            "space: {parameters: {epsilon: 0.1}}\n",
            r"`space.parameters`: `task_arithmetic` has no parameters; leave out `epsilon`",
        ),
        (
            "merge: {method: della}\nspace: {parameters: {epsilom: 0.1}}\n",
            r"`della` has no parameter `epsilom`; did you mean `epsilon`\?",
        ),
        (
            "merge: {method: della}\nspace: {parameters: {epsilon: [0.1, 7]}}\n",
            r"`space.parameters.epsilon` must lie in \[0, .*got \[0.1, 7\]",
        ),
        (
            "merge: {method: della}\nspace: {parameters: {epsilon: [0.2, 0.1]}}\n",
            r"space.parameters.epsilon: must be a number or \[low, high\]",
        ),
        (
            "merge: {method: linear}\nspace: {lambda: 0.5}\n",
            r"`space.lambda` is not used by `linear`",
        ),
        (
            "merge: {device: gpu}\n",
            r"merge.device: must be auto, cpu, cuda or cuda:NUMBER, got 'gpu'; name one$",
        ),
        ("search: {sampler_args: {seed: 3}}\n", r"must not hold `seed`.*use `search.run_seed`"),
        (
            "baselines: {ties_drop_rates: [1.0]}\n",
            r"baselines.ties_drop_rates.0: must be below 1, got 1.0",
        ),
        ("baselines: {lambdas: [.nan]}\n", r"baselines.lambdas.0: .*finite"),
        (
            "eval: {fewshot_as_multiturn: true}\n",
            r"eval: `fewshot_as_multiturn: true` needs `apply_chat_template: true`",
        ),
        ("eval: {threads: 100000}\n", r"eval.threads: must be auto, or at most 1024, got 100000"),
        ("space: {depth: {control_points: 1001}}\n", r"K in 1..1000, got"),
        ("space: {}\nspace: {}\n", r"duplicate key `space`"),
        ("search: 7\n", r"search: must be a mapping with keys trials, .*; got 7"),
        ("search: {racing: {frist: 3}}\n", r"search.racing: unknown key `frist`; .* `first`\?$"),
        ("search: {racing: {alpha: 2}}\n", r"search.racing.alpha: must be below 0.5, got 2$"),
        ("search: {racing: {first: 0}}\n", r"search.racing.first: must be at least 2, got 0$"),
        ("search: {racing: yes}\n", r"search.racing: must be false or a mapping .*, got True; le"),
        ("eval: {threads: atuo}\n", r"threads: must be auto, or a whole .*'atuo'; .* `auto`\?$"),
        ("space: {optional: x}\n", r"space.optional: must be true or false, or a list, got 'x'$"),
        ("space: {optional: [1]}\n", r"space.optional.0: must be text, got 1; put it in quotes$"),
        ("space: {weight: x}\n", r"space.weight: must be a number or \[low, high\], got 'x'$"),
        ("space: {weight: [1]}\n", r"space.weight: must be a number or .*, got \[1\]$"),
        (
            "space: {mask_seed: 5}\n",
            r"space.mask_seed: must be \[first, last\] .*, got 5;",
        ),
        (
            "space: {modules: attn}\n",
            r"space.modules: must be a list, got 'attn'; put",
        ),
        ("search: {hours: x}\n", r"search.hours: must be a number, got 'x'$"),
        ("search: {dissect: maybe}\n", r"search.dissect: must be true or false, got 'maybe'$"),
        ("search: {warm_start: 3}\n", r"search.warm_start: must be a path, got 3; put it in quot"),
        ("made_by: 7\n", r"made_by: must be text, got 7; put it in quotes$"),
        ("splits: {search_share: }\n", r"splits.search_share: must be a number, got nothing$"),
        ("splits: {search_share: 0}\n", r"splits.search_share: must be above 0, got 0$"),
        ("guard: [{task: ''}]\n", r"guard.0.task: must not be empty, got ''; name one$"),
        ("guard: x\n", r"guard: must be a list, got 'x'; put it in \[ \]$"),
        ("merge: {dtype: bf16}\n", r"merge.dtype: .*got 'bf16'; did you mean `bfloat16`\?$"),
        ("merge: {tokenizer: unoin}\n", r"merge.tokenizer: .*'unoin'; did you mean `union`\?$"),
        ("merge: {placement: atuo}\n", r"merge.placement: .*'atuo'; did you mean `auto`\?$"),
        ("workers: {engine: rayy}\n", r"engine: must be local or ray, got 'rayy'; .* `ray`\?$"),
        ("guard: [{task: x, optimize: margn}]\n", r"guard.0.optimize: .*'margn'; .* `margin`\?$"),
        (
            "stages: [{modules: attn}, {depth: layers}]\n",
            r"`stages.0`: modules: must be a list, got 'attn'; put it in \[ \]$",
        ),
    ],
)
def test_each_mistake_has_its_message(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, MINIMAL + text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_method_that_takes_two_parents_is_not_given_three(tmp_path):
    text = MINIMAL.replace("{a:", "{c: ./models/c, a:") + "space: {method: [ties, slerp]}\n"
    with pytest.raises(ConfigError, match=r"`slerp` merges at most 2 parents at a time, got 3"):
        load(tmp_path, text)


def test_kinds_of_modules_may_be_those_that_the_configuration_defines(tmp_path):
    groups = '{"*.layers.{layer}.*.q_proj.*": "layers.{layer}.q", "*.router.*": router}'
    text = f"merge: {{layer_groups: {groups}}}\nspace: {{modules: [q, router, embed, mlp]}}\n"
    config = load(tmp_path, MINIMAL + text)
    assert (
        config.merge.grouping.group("model.layers.3.self_attn.q_proj.weight").name == "layers.3.q"
    )
    assert type(config).model_validate(config.to_dict()) == config


def test_methods_and_their_parameters(tmp_path):
    text = "space: {method: [della, breadcrumbs], parameters: {epsilon: [0, 0.2], gamma: 0.01}}\n"
    config = load(tmp_path, MINIMAL + text)
    assert config.methods == ("della", "breadcrumbs")
    assert config.space.parameters == {"epsilon": (0, 0.2), "gamma": (0.01, 0.01)}
    assert load(tmp_path, MINIMAL).methods == ("task_arithmetic",)
    assert load(tmp_path, MINIMAL + "merge: {method: ties}\n").methods == ("ties",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tiny\n", "", "the key `name` is missing; add it"),
        ("name: tiny", "name: a/b", "name: must be letters, .*got 'a/b'; it names the folder"),
        ("name: tiny", "name: ..", "name: must be letters, digits, `_`, `-` or `.`"),
        ("name: tiny", "name: 2024-13-45", "not readable as YAML: month must be in 1..12"),
        (
            "{a: ./models/a, b: ./models/b}",
            "{}",
            "parents: must have at least 1 entry, .*; add",
        ),
        ("{a: ./models/a", "{base: ./models/a", "and not `base`; got `base`"),
        ("{a: ./models/a", "{a.b: ./models/a", "letters, digits"),
        (
            "base: ./models/base",
            "base: 7",
            "base: must be a directory or a hub id such as `org/name`, got 7",
        ),
        ("name: tiny", "name: [", "not readable as YAML"),
        (MINIMAL, "- 1\n", "must be a YAML mapping"),
    ],
)
def test_each_missing_or_broken_part_has_its_message(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, MINIMAL.replace(old, new))


def test_all_faults_at_once_one_line_each(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, MINIMAL + "search: {trials: -1}\nmerge: {dtype: int8}\n")
    assert len(str(error.value).splitlines()) == 2


def test_shipped_searches_are_found_by_name():
    assert find_config("quickstart").name == "search.yaml"
    with pytest.raises(ConfigError, match=r": `quickstrat`; did you mean `quickstart`\?$"):
        find_config("quickstrat")
    with pytest.raises(ConfigError, match=r": `x`; give the path .*: quickstart"):
        find_config("x")


def test_the_readme_names_every_method_and_its_parameters():
    table = (Path(__file__).parents[3] / "README.md").read_text()
    for method in METHODS.values():
        assert f"`{method.name}`" in table, f"README's table of methods lacks {method.name}"
        row = next(line for line in table.splitlines() if f"`{method.name}`" in line)
        for parameter in method.parameters:
            assert f"`{parameter.name}`" in row


@pytest.mark.parametrize("file", sorted(Path(config.__file__).parent.glob("*.py")), ids=str)
def test_every_key_is_documented(file):
    sections = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    for section in sections:
        for key, after in pairwise([*section.body, ast.Pass()]):
            if isinstance(key, ast.AnnAssign):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert is_text, f"{section.name}.{ast.unparse(key.target)} has no docstring"
