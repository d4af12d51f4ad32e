"""What a training recipe may say: one YAML file, every key checked before anything loads."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from layerskip_vllm.training.curriculum import Curriculum, Fixed, Gradual, Rotational

PRESETS = files("layerskip_vllm.training") / "presets"

ExitLayer = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """What is trained."""

    path: str | None = Field(None, description="Checkpoint to start from: a folder or a hub name")
    config: dict[str, object] | None = Field(
        None, description="Or train from scratch: the keys of a config.json, model_type included"
    )
    tokenizer: str | None = Field(None, description="Folder or hub name; default: that of `path`")

    save_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Of the final checkpoint; training itself keeps float32 weights"
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if (self.path is None) == (self.config is None):
            raise ValueError(
                "say either path (a checkpoint to go on from) or config (train from scratch)"
            )
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a model from scratch needs the tokenizer named")
        return self


class LayerSkipSection(Section):
    """The paper's own numbers; section 4.1."""

    p_max: float = Field(0.1, ge=0, lt=1, description="Layer dropout of the last layer")
    dropout_schedule: Literal["constant", "exponential"] = Field(
        "constant", description="S(t): constant to go on from a checkpoint, exponential from scratch"
    )
    e_scale: float = Field(0.2, ge=0, description="Weight of the early exits; the paper: 0 to 1")
    curriculum: Literal["rotational", "gradual", "fixed"] = Field(
        "rotational", description="Which exits are trained in a step"
    )
    rotation: int | None = Field(None, ge=1, description="R: every R-th layer is on; rotational")
    exit_layers: list[ExitLayer] | None = Field(
        None, min_length=1, description="The exits E that are always on; fixed"
    )

    @model_validator(mode="after")
    def _curriculum_is_complete(self) -> LayerSkipSection:
        needs = {"rotational": "rotation", "fixed": "exit_layers"}.get(self.curriculum)
        for key in ("rotation", "exit_layers"):
            is_said = getattr(self, key) is not None
            if is_said != (key == needs):
                verb = "needs" if key == needs else "does not take"
                raise ValueError(f"curriculum {self.curriculum} {verb} {key}")
        return self

    def build_curriculum(self) -> Curriculum:
        """Return the curriculum that this section names."""
        if self.rotation is not None:
            return Rotational(self.rotation)
        return Gradual() if self.exit_layers is None else Fixed(tuple(self.exit_layers))


class DataSource(Section):
    """Where documents come from: files, or a dataset of the `datasets` library."""

    files: list[str] | None = Field(
        None, min_length=1, description="Text (.txt, .py, ...) or .jsonl files; globs allowed"
    )
    dataset: str | None = Field(None, description="Hub name, or a folder made by save_to_disk")
    name: str | None = Field(None, description="The dataset's configuration")
    split: str = Field("train", description="The dataset's split")
    text_column: str = Field("text", description="The key or column that holds the document")

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.files is None) == (self.dataset is None):
            raise ValueError("say either files or dataset")
        return self


class DataSection(Section):
    """What it is trained on."""

    train: DataSource
    validation: DataSource | None = None
    sequence_length: int = Field(512, ge=2, description="Tokens in a row")
    max_validation_rows: int | None = Field(None, ge=1, description="Rows evaluated; default all")
    streaming: bool = Field(False, description="Read and tokenize while training")
    shuffle_buffer: int = Field(10_000, ge=1, description="Rows shuffled together when streaming")


class Recipe(Section):
    """One training run."""

    preset: str | None = Field(None, description="The paper's values to start from")
    model: ModelSection
    layerskip: LayerSkipSection = LayerSkipSection(rotation=8)
    data: DataSection
    trainer: dict[str, object] = Field(
        description="transformers.TrainingArguments, output_dir at least"
    )

    @field_validator("trainer")
    @classmethod
    def _output_dir(cls, value: dict[str, object]) -> dict[str, object]:
        if not value.get("output_dir"):
            raise ValueError("output_dir is missing: the folder that receives the checkpoint")
        return value


def preset_names() -> list[str]:
    """The presets that a recipe may start from."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir())


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and the preset it names; the recipe's own values win.

    Raises:
        ValueError: The file is no YAML mapping, or a key or value is bad: every fault is named
            with its key, its value and what would do.
        OSError: The file cannot be read.
    """
    said = _read_mapping(path.read_text(encoding="utf-8"), str(path))
    preset = said.get("preset")
    if preset is not None:
        if preset not in preset_names():
            raise ValueError(
                f"{path}: preset={preset!r} is none of {', '.join(preset_names())}"
            )
        text = (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")
        said = _merge(_read_mapping(text, f"preset {preset}"), said)
    try:
        return Recipe(**said)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(entry)}" for entry in error.errors())
        raise ValueError(f"{path}:\n{faults}") from None


def _read_mapping(text: str, name: str) -> dict:
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from None
    if not isinstance(said, Mapping):
        raise ValueError(f"{name} must hold a mapping of sections, not {type(said).__name__}")
    return dict(said)


CURRICULUM_KEYS = ("curriculum", "rotation", "exit_layers")
"""They belong together: a recipe that names a curriculum takes none of the preset's."""


def _merge(preset: dict, said: dict) -> dict:
    """Lay the recipe's sections over the preset's, key by key."""
    merged = dict(preset)
    for section, value in said.items():
        below = merged.get(section)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            merged[section] = value
            continue
        if section == "layerskip" and "curriculum" in value:
            below = {key: item for key, item in below.items() if key not in CURRICULUM_KEYS}
        merged[section] = {**below, **value}
    return merged


def _fault(error: Mapping) -> str:
    """One fault as `key=value: what would do`."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        section = Recipe
        for part in error["loc"][:-1]:
            section = _section_of(section, str(part))
        known = ", ".join(section.model_fields)
        return f"{key}={error['input']!r}: unknown key; known here: {known}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key}={error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel]:
    annotation = section.model_fields[key].annotation
    options = getattr(annotation, "__args__", (annotation,))
    return next(option for option in options if issubclass(option, BaseModel))
