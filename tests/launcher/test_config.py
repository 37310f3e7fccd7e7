"""Recipes: what is accepted, what is refused and in which words, and that no option is decorative."""

from __future__ import annotations

import ast
from pathlib import Path
from unicodedata import normalize

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import dpeer.config as config_module
import dpeer.eval.bench.config as bench_config
import dpeer.eval.build.spec as build_spec
import dpeer.eval.config as eval_config
from dpeer.config import Config, Model, Section, Training
from dpeer.config_io import load_config, resolved_yaml
from dpeer.errors import ConfigError
from dpeer.launcher.cli import app
from dpeer.launcher.recipe import RECIPES, recipe_names, training_config

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
name: try
model: {path: base}
data: {train: train.jsonl}
training: {steps: 10}
"""


def changed(**sections: object) -> str:
    return yaml.safe_dump({**yaml.safe_load(GOOD), **sections})


# name -> (recipe file, --set values, fragments of the message)
MALFORMED: dict[str, tuple[bytes | str, list[str], list[str]]] = {
    "empty file": ("", [], ["an empty file", "training"]),
    "only comments": ("# nothing\n", [], ["an empty file"]),
    "a list": ("- name: x\n", [], ["list", "mapping"]),
    "a word": ("hello\n", [], ["'hello'", "mapping"]),
    "broken yaml": ("name: [x\n", [], ["line 2", "not valid YAML"]),
    "tabs": ("name: x\nmodel:\n\tpath: a\n", [], ["line 3", "\\t"]),
    "two documents": (GOOD + "---\n" + GOOD, [], ["not valid YAML", "another document"]),
    "python tag": ("name: !!python/object/apply:os.getcwd []\n", [], ["not valid YAML", "python"]),
    "not utf-8": (b"name: caf\xe9\n", [], ["not UTF-8", "byte 9"]),
    "control bytes": (b"name: a\x00b\n", [], ["not valid YAML"]),
    "deep nesting": ("[" * 5000, [], ["nested too deeply"]),
    "repeated key": (GOOD + "name: other\n", [], ["'name' is given twice, in lines 1 and 5"]),
    "repeated inner key": (changed() + "seed: 1\ncluster: {gpus_per_worker: 1, gpus_per_worker: 2}\n", [], ["twice"]),
    "missing sections": ("name: x\n", [], ["model: required", "data: required", "training: required"]),
    "missing path": (changed(model={}), [], ["model.path: required", "hub id"]),
    "typo at the top": (changed(modle={"path": "x"}), [], ["modle: unknown key; did you mean model?"]),
    "typo inside": (changed(training={"step": 3}), [], ["training.step: unknown key; did you mean training.steps?"]),
    "key of another section": (changed(lr=1e-3), [], ["lr: unknown key; did you mean training.optimizer.lr?"]),
    "unheard-of key": (changed(data={"train": "a", "zzz": 1}), [], ["data.zzz: unknown key; known here: train"]),
    "number as key": (GOOD + "3: 4\n", [], ["3"]),
    "section is text": (changed(model="base"), [], ["model: 'base' given; must be a section", "path"]),
    "section is null": (changed(data=None), [], ["data: nothing given; must be a section"]),
    "bad name": (changed(name="a/b"), [], ["name: 'a/b' given", "letters, digits"]),
    "empty name": (changed(name=""), [], ["name: '' given"]),
    "path is a number": (changed(model={"path": 7}), [], ["model.path: 7 given; must be text"]),
    "negative seed": (changed(seed=-1), [], ["seed: -1 given; must be greater than or equal to 0"]),
    "unknown choice": (changed(), ["model.dtype=fp16"], ["model.dtype: 'fp16' given", "'fp32' or 'bf16'", "'bf16'?"]),
    "unknown form": (changed(), ["objective.constraint.form=thresh"], ["did you mean 'threshold'?"]),
    "zero steps": (changed(training={"steps": 0}), [], ["training.steps: 0 given"]),
    "fractional steps": (changed(training={"steps": 2.5}), [], ["training.steps: 2.5 given", "integer"]),
    "steps and epochs": (changed(training={"steps": 2, "epochs": 1}), [], ["exactly one of steps (2) and epochs (1"]),
    "no length": (changed(training={}), [], ["exactly one of steps"]),
    "patience without a best": (changed(), ["training.patience=2"], ["patience (2)", "Set training.keep=best"]),
    "best without a dual split": (
        changed(),
        ["training.keep=best", "data.dual=none", "objective.dual.evidence=batch"],
        ["training.keep=best judges checkpoints on the dual split", "data.dual is none"],
    ),
    "proof for sft": (
        changed(),
        ["training.keep=best", "training.stop_when=certified", "objective.kind=sft"],
        ["training.keep=best and training.stop_when=certified", "objective.kind is sft"],
    ),
    "nothing to prove": (
        changed(),
        ["training.stop_when=certified", "objective.constraint.tolerance={A: .inf}"],
        ["no dimension has a tolerance that could be proven"],
    ),
    "true as number": (changed(training={"steps": True}), [], ["training.steps: True given; must not be true"]),
    "yes as rate": (
        changed(),
        ["training.optimizer.lr=yes"],
        ["training.optimizer.lr: 'yes' given; must be a valid number"],
    ),
    "word as rate": (changed(), ["training.optimizer.lr=fast"], ["'fast' given; must be a valid number"]),
    "infinite rate": (changed(), ["training.optimizer.lr=.inf"], ["training.optimizer.lr: inf", "finite"]),
    "minutes": (changed(), ["training.steps=1:30"], ["training.steps: '1:30' given; must be a valid integer"]),
    "minutes in a recipe": (GOOD.replace("10", "1:30"), [], ["training.steps: '1:30' given; must be a valid integer"]),
    "on as number": (GOOD.replace("10", "on"), [], ["training.steps: 'on' given"]),
    "no folder": (changed(), ["output_dir="], ["output_dir: nothing given; must be a path"]),
    "empty folder": (changed(output_dir=" "), [], ["output_dir: is empty; give a folder"]),
    "empty model": (changed(), ["model.path=''"], ["model.path: '' given", "at least 1 character"]),
    "nobody's home": (changed(), ["data.train=~nobody-of-that-name/x"], ["no home folder"]),
    "one beta": (changed(), ["training.optimizer.betas=[0.9]"], ["training.optimizer.betas"]),
    "beta out of range": (changed(), ["training.optimizer.betas=[0.9, 1.5]"], ["[0, 1)", "1.5"]),
    "negative tolerance": (changed(), ["objective.constraint.tolerance=-0.1"], ["tolerance: -0.1 given"]),
    "nan tolerance": (changed(), ["objective.constraint.tolerance=.nan"], ["tolerance: nan given"]),
    "tolerance list": (changed(), ["objective.constraint.tolerance=[1]"], ["valid number or a mapping"]),
    "tolerance per dimension": (
        changed(),
        ["objective.constraint.tolerance={A: 0.5, T: -1}"],
        ["objective.constraint.tolerance.T: -1 given"],
    ),
    "weights sum to zero": (changed(), ["objective.primary={A: 0, T: 0}"], ["positive sum"]),
    "smoothing without sigmoid": (
        changed(objective={"loss": "ipo", "label_smoothing": 0.1}),
        [],
        ["label_smoothing (0.1)", "'ipo'"],
    ),
    "lora rank": (changed(), ["model.lora={rank: 0}"], ["model.lora.rank: 0 given"]),
    "many faults": (
        changed(**{f"junk{i}": 0 for i in range(40)}),
        [],
        ["40 faults", "... and 32 more"],
    ),
    "huge value": (changed(seed="9" * 100_000), [], ["seed: '999", "given"]),
    "set without value": (GOOD, ["training.steps"], ["--set 'training.steps': write it as section.key=value"]),
    "set without key": (GOOD, ["=3"], ["write it as section.key=value"]),
    "set with empty part": (GOOD, ["training..steps=3"], ["write it as section.key=value"]),
    "set of unknown key": (GOOD, ["training.stepz=3"], ["error: --set training.stepz: unknown key; did you mean"]),
    "key of a mapping that is set": (GOOD, ["model.lora={ranc: 3}"], ["--set model.lora.ranc: unknown key"]),
    "set and recipe": (
        GOOD.replace("steps", "stepz"),
        ["seed=-1"],
        ["recipe.yaml and --set: 2 faults", "  training.stepz:", "  --set seed: -1 given"],
    ),
    "set below a value": (GOOD, ["name.first=x"], ["name is 'try' here", "no keys inside"]),
    "set broken yaml": (GOOD, ["training.steps=[1"], ["--set training.steps", "not valid YAML"]),
    "extends nothing there": (GOOD + "extends: gone.yaml\n", [], ["gone.yaml", "cannot be read"]),
    "extends itself": (GOOD + "extends: recipe.yaml\n", [], ["in a circle"]),
    "extends a number": (GOOD + "extends: 3\n", [], ["extends: 3 given"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_recipe_is_refused_on_one_screen(case: str, tmp_path: Path) -> None:
    text, overrides, fragments = MALFORMED[case]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    options = [part for override in overrides for part in ("--set", override)]
    result = CliRunner().invoke(app, ["train", str(recipe), *options, "--dry-run"])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert "unexpected" not in result.output
    lines = result.output.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 400
    for fragment in fragments:
        assert fragment in result.output


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(RECIPES / f"{name}.yaml")
    copy = tmp_path / "resolved.yaml"
    copy.write_text(resolved_yaml(config))
    assert load_config(copy) == config
    for deepspeed in (config.cluster.deepspeed, config.cluster.reference_deepspeed):
        assert (ROOT / "ds_configs" / f"{deepspeed}.json").is_file()


def test_baselines_differ_from_the_demo_only_where_they_should() -> None:
    demo = load_config(RECIPES / "demo.yaml")
    assert demo.objective.constraint.tolerance == {"A": 0.3, "C": 0.3, "E": 0.3, "T": 0.65}
    for name in ("pooled_dpo", "uniform", "scalarised", "worst", "paper_pairs", "paper_levels", "sft"):
        arm = load_config(RECIPES / f"{name}.yaml")
        assert (arm.model, arm.data, arm.cluster) == (demo.model, demo.data, demo.cluster)
        assert arm.objective.beta == demo.objective.beta
        assert arm.objective != demo.objective
        assert arm.run_dir != demo.run_dir
        assert arm.training == demo.training or name == "sft"


def test_overrides_win_in_order_and_build_missing_sections(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GOOD)
    config = load_config(
        recipe,
        ["training.steps=3", "training.steps=4", "model.lora.rank=8", "training.optimizer.lr=1e-4", "name='2026'"],
    )
    assert config.training.steps == 4
    assert config.model.lora is not None and config.model.lora.rank == 8
    assert config.training.optimizer.lr == 1e-4
    assert config.name == "2026"


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ([], 1e-6),
        (["model.lora.rank=8"], 2e-5),
        (["model.lora={}", "training.optimizer.warmup=0.2"], 2e-5),
        (["model.lora={}", "training.optimizer.lr=1e-6"], 1e-6),
        (["model.lora=null"], 1e-6),
    ],
)
def test_the_learning_rate_follows_the_mode_where_none_is_given(
    overrides: list[str], rate: float, tmp_path: Path
) -> None:
    sections = yaml.safe_load(GOOD)
    sections["training"].pop("optimizer", None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    config = load_config(tmp_path / "recipe.yaml", overrides)
    assert config.training.optimizer.lr == rate
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(config))
    assert load_config(tmp_path / "resolved.yaml") == config
    tree = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    del tree["training"]["optimizer"]
    parts = {"model": Model(**tree["model"]), "training": Training(**tree["training"])}
    built = Config(**tree | parts)  # in Python, of sections
    assert built.training.optimizer.lr == (1e-6 if built.model.lora is None else 2e-5)
    assert not built.rate_given and parts["training"].optimizer.lr == 1e-6


@pytest.mark.parametrize("text", ["inf", ".inf", "{A: inf, T: 0.5}"])
def test_infinite_tolerance_is_read_and_survives_a_round_trip(text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GOOD)
    config = load_config(recipe, [f"objective.constraint.tolerance={text}"])
    tolerance = config.objective.constraint.tolerance
    assert (tolerance["A"] if isinstance(tolerance, dict) else tolerance) == float("inf")
    recipe.write_text(resolved_yaml(config))
    assert load_config(recipe) == config


@settings(deadline=None)
@given(
    lr=st.floats(min_value=1e-300, max_value=1e3),
    tolerance=st.dictionaries(st.text(min_size=1, max_size=5), st.floats(min_value=0), min_size=1, max_size=4),
    path=st.text(min_size=1, max_size=20).filter(lambda text: text[0] != "~"),
)
def test_any_value_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, lr: float, tolerance: dict[str, float], path: str
) -> None:
    sections = yaml.safe_load(GOOD)
    sections["training"]["optimizer"] = {"lr": lr}
    sections["model"]["path"] = path
    sections["objective"] = {"constraint": {"tolerance": tolerance}}
    sections["objective"]["constraint"]["tolerance"] = {normalize("NFC", k): v for k, v in tolerance.items()}
    config = Config.model_validate(sections)
    copy = tmp_path_factory.mktemp("round") / "resolved.yaml"
    copy.write_text(resolved_yaml(config))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [("010", 10), ("08", 8), ("1_000", 1000), ("0x1f", 31), ("+5", 5), ("1e2", 100), ("60", 60)],
)
def test_numbers_are_what_they_look_like(text: str, expected: int, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GOOD.replace("10", text))
    (tmp_path / "good.yaml").write_text(GOOD)
    assert load_config(recipe).training.steps == expected
    assert load_config(tmp_path / "good.yaml", [f"training.steps={text}"]).training.steps == expected


@pytest.mark.parametrize("name", ["2026-01-31", "no", "1.2.3", "3_a"])
def test_text_stays_text(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    config = load_config(tmp_path / "recipe.yaml", [f"name={name}", "cluster.preflight=no"])
    assert config.name == name and config.cluster.preflight is False
    (tmp_path / "copy.yaml").write_text(resolved_yaml(config))
    assert load_config(tmp_path / "copy.yaml") == config


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "base.yaml").write_text(GOOD + "output_dir: ~/runs\n")
    (tmp_path / "recipe.yaml").write_text("extends: ~/base.yaml\ndata: {heldout: ~/h.jsonl}\n")
    sets = ["data.train=~/t.jsonl", "model.path=~/m", "model.reference_path=~/r", "cluster.deepspeed=~/ds.json"]
    config = load_config(tmp_path / "recipe.yaml", sets, values={"data.dual": "~/d.jsonl"})
    spec, data = config.model, config.data
    found = (spec.path, spec.reference_path, data.train, data.heldout, data.dual, config.cluster.deepspeed)
    names = ("m", "r", "t.jsonl", "h.jsonl", "d.jsonl", "ds.json")
    assert found == tuple(str(tmp_path / "home" / n) for n in names)
    assert config.run_dir == tmp_path / "home" / "runs" / config.name
    assert load_config(tmp_path / "recipe.yaml", ["data.train=a~b"]).data.train == "a~b"


def test_dimension_names_are_composed(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    decomposed = normalize("NFD", "café")
    config = load_config(tmp_path / "recipe.yaml", [f"objective.constraint.tolerance={{{decomposed}: 0.1}}"])
    assert config.objective.constraint.tolerance == {"café": 0.1}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"revision": "abc"}, ("m", "abc")),
        ({"revision": "abc", "reference_path": "m"}, ("m", "abc")),
        ({"revision": "abc", "reference_path": "r"}, ("r", None)),
        ({"revision": "abc", "reference_path": "r", "reference_revision": "def"}, ("r", "def")),
        ({"revision": "abc", "reference_revision": "def"}, ("m", "def")),
    ],
)
def test_the_reference_has_a_revision_of_its_own(given: dict[str, str], expected: tuple[str, str | None]) -> None:
    spec = config_module.Model(path="m", **given)
    assert spec.reference == expected
    assert spec.reference_is_base == (expected == ("m", "abc"))


def test_extends_merges_mappings_of_a_chain(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD + "objective: {beta: 0.3, constraint: {tolerance: 0.1, slack: 0.2}}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nname: b\nobjective: {constraint: {tolerance: inf}}\n")
    (tmp_path / "c.yaml").write_text("extends: b.yaml\ntraining: {steps: 7}\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.name, config.training.steps, config.objective.beta) == ("b", 7, 0.3)
    assert (config.objective.constraint.tolerance, config.objective.constraint.slack) == (float("inf"), 0.2)


def test_steps_and_epochs_replace_each_other_from_layer_to_layer(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD.replace("steps: 10", "epochs: 3"))
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ntraining: {steps: 7}\n")
    assert load_config(tmp_path / "a.yaml").training.epochs == 3
    for config in (
        load_config(tmp_path / "b.yaml"),
        load_config(tmp_path / "a.yaml", ["training.steps=7"]),
        load_config(tmp_path / "a.yaml", ["training.steps=7", "training.epochs=null"]),
        load_config(tmp_path / "a.yaml", changes={"training": {"steps": 7}}),
        load_config(tmp_path / "a.yaml", values={"training.steps": 7}),
    ):
        assert (config.training.steps, config.training.epochs) == (7, None)
    with pytest.raises(ConfigError, match="exactly one of steps"):
        load_config(tmp_path / "a.yaml", ["training.steps=7", "training.epochs=2"])


def test_extends_finds_recipes_beside_it_first_and_then_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: llama3_8b\nname: mine\n")
    config = load_config(tmp_path / "mine.yaml", shipped=RECIPES)
    assert (config.name, config.model.path) == ("mine", training_config("llama3_8b").model.path)
    (tmp_path / "llama3_8b").write_text(GOOD)
    assert load_config(tmp_path / "mine.yaml", shipped=RECIPES).model.path == yaml.safe_load(GOOD)["model"]["path"]


def sections() -> list[type[Section]]:
    return [c for c in vars(config_module).values() if isinstance(c, type) and issubclass(c, Section) and c != Section]


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def sources(*folders: str) -> list[Path]:
    return [f for folder in folders for f in (ROOT / folder).rglob("*.py") if f.name != "config.py"]


def test_every_field_is_read_by_some_code() -> None:
    files = sources("dpeer", "launcher")
    read = set().union(*(attributes(ast.parse(file.read_text())) for file in files))
    for node in ast.walk(ast.parse(Path(config_module.__file__).read_text())):
        # A property such as run_dir passes on what it reads, if somebody reads it.
        if isinstance(node, ast.FunctionDef) and node.name in read:
            read |= attributes(node)
    fields = {name for section in sections() for name in section.model_fields}
    assert fields - read == set()


def test_every_field_of_an_evaluation_or_a_build_is_read_by_some_code() -> None:
    files = sources("eval", "launcher")
    read = set().union(*(attributes(ast.parse(file.read_text())) for file in files))
    named = [
        c for module in (eval_config, build_spec, bench_config) for c in vars(module).values() if isinstance(c, type)
    ]
    kinds = [c for c in named if issubclass(c, Section) and c != Section]
    assert {name for section in kinds for name in section.model_fields} - read - {"output_dir"} == set()


def test_every_field_is_described_and_refuses_unknown_keys() -> None:
    for section in sections():
        assert section.model_config.get("extra") == "forbid"
        leaves = {n: f for n, f in section.model_fields.items() if section is not Config or n in ("name", "seed")}
        assert [n for n, f in leaves.items() if not f.description and not _is_section(f.annotation)] == []


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def test_a_tolerance_per_dimension_replaces_the_inherited_one_whole(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("extends: demo\nobjective: {constraint: {tolerance: {E: 0.2}}}\n")
    config = load_config(tmp_path / "other.yaml", shipped=RECIPES)
    assert config.objective.constraint.tolerance == {"E": 0.2}
    changed = load_config(RECIPES / "demo.yaml", ["objective.constraint.tolerance.T=0.4"])
    assert changed.objective.constraint.tolerance == {"A": 0.3, "C": 0.3, "E": 0.3, "T": 0.4}
