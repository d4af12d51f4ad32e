"""Valid recipes, and the errors of bad ones."""

from pathlib import Path

import pytest
import yaml

from layerskip_vllm.cli import main
from layerskip_vllm.training.curriculum import Fixed, Gradual, Rotational
from layerskip_vllm.training.recipe import load_recipe, preset_names
from layerskip_vllm.training.run import train
from tests.training.recipes import write_data, write_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
OTHERS = {"ray", "grafana"}
"""Folders whose YAML files are no recipes."""
RECIPES = sorted(path for path in EXAMPLES.rglob("*.yaml") if not OTHERS & set(path.parts))

GOOD = {
    "model": {"path": "somewhere"},
    "layerskip": {"p_max": 0.1, "e_scale": 0.2, "curriculum": "rotational", "rotation": 8},
    "data": {"train": {"files": ["some.txt"]}},
    "trainer": {"output_dir": "out"},
}


def write(tmp_path, **changes):
    """Write the good recipe with some keys changed: `section__key=value`, None removes a key."""
    recipe = yaml.safe_load(yaml.safe_dump(GOOD))
    for name, value in changes.items():
        *path, key = name.split("__")
        section = recipe
        for part in path:
            section = section.setdefault(part, {})
        section[key] = value
        if value is None:
            del section[key]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layerskip__p_max": 1.0}, "layerskip.p_max=1.0 must be in [0, 1)"),
        ({"layerskip__p_max": "high"}, "layerskip.p_max='high': Input should be a valid number"),
        ({"layerskip__e_scale": -0.1}, "layerskip.e_scale=-0.1 must be in [0, inf)"),
        ({"layerskip__rotation": 0}, "layerskip.rotation=0 must be in [1, inf)"),
        ({"layerskip__rotation": None}, "curriculum rotational needs rotation"),
        ({"layerskip__exit_layers": [4]}, "curriculum rotational does not take exit_layers"),
        (
            {"layerskip__curriculum": "slow"},
            "layerskip.curriculum='slow': Input should be 'rotational', 'gradual' or 'fixed'",
        ),
        (
            {"layerskip__pmax": 0.1},
            "layerskip.pmax=0.1: unknown key; known keys: p_max, dropout_schedule, e_scale",
        ),
        (
            {"layerskip": None},
            "layerskip is missing: give its keys, or `preset`, one of code-finetune",
        ),
        ({"model__path": None}, "give either path (a checkpoint to continue from) or config"),
        (
            {"model__path": None, "model__config": {}},
            "config also needs tokenizer: a folder or hub name",
        ),
        ({"data__sequence_length": 1}, "data.sequence_length=1 must be in [2, inf)"),
        ({"data__train__dataset": "x"}, "give either files or dataset"),
        ({"data__train__file": "x"}, "data.train.file='x': unknown key; known keys: files"),
        ({"trainer__output_dir": None}, "trainer.output_dir is missing"),
        ({"trainer__learning_rate": 0}, "trainer.learning_rate=0 must be in (0, inf)"),
        ({"trainer__adam_beta2": 1.0}, "trainer.adam_beta2=1.0 must be in [0, 1)"),
        ({"trainer__max_steps": "many"}, "trainer.max_steps='many': Input should be a valid int"),
        (
            {"trainer__learning_rat": 1},
            "trainer.learning_rat=1: unknown key; did you mean",
        ),
        ({"trainer__torch_compile": True}, "torch_compile=True is not supported"),
        ({"trainer__label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not supported"),
        ({"preset": "llama9"}, "preset='llama9' must be one of code-finetune, continual-13b"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_the_valid_ones(tmp_path, capsys, changes, message):
    assert main(["train", str(write(tmp_path, **changes))]) == 2
    assert message in capsys.readouterr().err


def test_all_faults_are_named_at_once(tmp_path):
    path = write(tmp_path, layerskip__p_max=2, data__sequence_length=0, trainer__seed=-1)
    with pytest.raises(ValueError, match=r"(?s)p_max=2.*sequence_length=0.*seed=-1"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "model: [unclosed"])
def test_a_recipe_that_is_not_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe.yaml (is not YAML|must hold a mapping)"):
        load_recipe(path)


def test_a_missing_recipe_is_named(capsys):
    assert main(["train", "nowhere.yaml"]) == 2
    expected = "layerskip-vllm train: nowhere.yaml: No such file or directory\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train__files": ["a.jsonl"]}, "data.train: files: 'a.jsonl' matches no file in /"),
        (
            {"data__train__files": [str(EXAMPLES / "*.yaml")], "data__validation__files": ["b"]},
            "data.validation: files: 'b' matches no file in /",
        ),
        ({"model__tokenizer": "nowhere"}, "model.tokenizer='nowhere': "),
        ({"model__path": "nowhere"}, "model.path='nowhere': "),
    ],
)
def test_what_does_not_exist_is_named_with_its_key(tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = {"data__train__files": [str(EXAMPLES / "*.yaml")]}
    output = {"trainer__output_dir": str(tmp_path / "out")}
    assert main(["train", str(write(tmp_path, **(files | output | changes)))]) == 2
    assert message in capsys.readouterr().err


def test_numbers_may_be_written_without_a_point(tmp_path):
    path = write(tmp_path)
    path.write_text(
        path.read_text().replace("output_dir: out", "output_dir: out\n  weight_decay: 3e-5")
    )
    assert load_recipe(path).training_arguments["weight_decay"] == 3e-5


PAPER = {
    # preset: (p_max, schedule, e_scale, curriculum, learning rate)
    "continual-7b": (0.1, "constant", 0.2, Rotational(8), 3e-5),
    "continual-13b": (0.1, "constant", 0.1, Rotational(39), 2e-5),
    "llama3": (0.1, "constant", 0.1, Rotational(8), None),
    "scratch-1.5b": (0.1, "exponential", 0.2, Rotational(23), None),
    "scratch-7b": (0.2, "exponential", 0.2, Rotational(31), None),
    "code-finetune": (0.1, "constant", 1.0, Rotational(16), None),
    "task-finetune": (0.2, "constant", 1.0, Gradual(), None),
}


@pytest.mark.parametrize("preset", PAPER)
def test_presets_hold_the_papers_values(tmp_path, preset):
    recipe = load_recipe(write(tmp_path, layerskip=None, preset=preset))
    layerskip = recipe.layerskip
    assert (
        layerskip.p_max,
        layerskip.dropout_schedule,
        layerskip.e_scale,
        layerskip.build_curriculum(),
        recipe.training_arguments.get("learning_rate"),
    ) == PAPER[preset]


def test_every_preset_is_tested():
    assert preset_names() == sorted(PAPER)


def test_the_recipes_own_values_win_over_the_presets(tmp_path):
    path = write(
        tmp_path,
        preset="continual-7b",
        layerskip={"e_scale": 0.5, "curriculum": "fixed", "exit_layers": [4]},
        trainer__learning_rate=1e-3,
    )
    recipe = load_recipe(path)
    assert (recipe.layerskip.p_max, recipe.layerskip.e_scale) == (0.1, 0.5)
    assert recipe.layerskip.build_curriculum() == Fixed((4,))
    assert recipe.training_arguments["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("layerskip", "message"),
    [
        ({"rotation": 4}, r"rotation=4 must be in \[1, 3\] for a 4-layer model"),
        (
            {"curriculum": "fixed", "rotation": None, "exit_layers": [2, 4]},
            r"exit_layer=4 must be in \[1, 3\] for a 4-layer model",
        ),
    ],
)
def test_an_exit_out_of_range_is_refused(tmp_path, layerskip, message):
    write_data(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(load_recipe(write_recipe(tmp_path, layerskip=layerskip)))


def test_an_unknown_model_key_is_refused(tmp_path):
    write_data(tmp_path)
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("num_hidden_layers", "num_layers"))
    with pytest.raises(
        ValueError, match=r"model.config: num_layers: unknown to model_type 'llama'"
    ):
        train(load_recipe(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_example_recipes_are_valid(path):
    load_recipe(path)
