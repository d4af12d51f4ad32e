"""Training recipes: one YAML file, whose keys are all checked before anything loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerskip_vllm.training.curriculum import Curriculum, Fixed, Gradual, Rotational
from layerskip_vllm.training.trainer_section import TrainerSection

PRESETS = files("layerskip_vllm.training") / "presets"


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """The model to train."""

    path: str | None = Field(None, description="Checkpoint to start from: a folder or a hub name")
    config: dict[str, object] | None = Field(
        None, description="Or train from scratch: keys of a config.json, model_type included"
    )
    tokenizer: str | None = Field(None, description="Folder or hub name; default: `path`")

    save_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Dtype of the final checkpoint; training keeps float32 weights"
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if (self.path is None) == (self.config is None):
            raise ValueError(
                "give either path (a checkpoint to continue from) or config (train from scratch)"
            )
        if self.config is not None and self.tokenizer is None:
            raise ValueError("config also needs tokenizer: a folder or hub name")
        return self


class LayerSkipSection(Section):
    """The paper's parameters; section 4.1."""

    p_max: float = Field(0.1, ge=0, lt=1, description="Layer dropout of the last layer")
    dropout_schedule: Literal["constant", "exponential"] = Field(
        "constant",
        description="S(t): constant to continue from a checkpoint, exponential from scratch",
    )
    e_scale: float = Field(0.2, ge=0, description="Weight of the early exits; the paper: 0 to 1")
    curriculum: Literal["rotational", "gradual", "fixed"] = Field(
        "rotational", description="How to choose the exits to train in a step"
    )
    rotation: int | None = Field(None, ge=1, description="R: every R-th layer is on; rotational")
    exit_layers: list[int] | None = Field(
        None, min_length=1, description="The exits E that are always on; fixed"
    )

    @model_validator(mode="after")
    def _curriculum_is_complete(self) -> LayerSkipSection:
        needs = {"rotational": "rotation", "fixed": "exit_layers"}.get(self.curriculum)
        for key in ("rotation", "exit_layers"):
            is_given = getattr(self, key) is not None
            if is_given != (key == needs):
                verb = "needs" if key == needs else "does not take"
                raise ValueError(f"curriculum {self.curriculum} {verb} {key}")
        for exit_layer in self.exit_layers or ():
            if exit_layer < 1:
                raise ValueError(f"exit_layers: exit_layer={exit_layer} must be at least 1")
        return self

    def build_curriculum(self) -> Curriculum:
        """Return the section's curriculum."""
        if self.rotation is not None:
            return Rotational(self.rotation)
        return Gradual() if self.exit_layers is None else Fixed(tuple(self.exit_layers))


class DataSource(Section):
    """A source of documents: files, or a dataset of the `datasets` library."""

    files: list[str] | None = Field(
        None, min_length=1, description="JSON Lines, CSV, Parquet or text files; globs allowed"
    )
    dataset: str | None = Field(None, description="Hub name, or a folder of save_to_disk")
    name: str | None = Field(None, description="The dataset's configuration")
    split: str = Field("train", description="The dataset's split")
    text_column: str = Field(
        "text",
        description="Key of the document; default: messages, or prompt and completion, or text",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.files is None) == (self.dataset is None):
            raise ValueError("give either files or dataset")
        return self


class DataSection(Section):
    """The training and validation data."""

    train: DataSource
    validation: DataSource | None = None
    sequence_length: int = Field(512, ge=2, description="Tokens in a row")
    max_validation_rows: int | None = Field(None, ge=1, description="Rows evaluated; default all")
    beginning_of_text: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether a document begins with the BOS token; auto: as the tokenizer does",
    )
    streaming: bool = Field(False, description="Read and tokenize while training")
    shuffle_buffer: int = Field(10_000, ge=1, description="Rows shuffled together when streaming")


class Recipe(Section):
    """One training run."""

    preset: str | None = Field(None, description="The paper's values to start from")
    model: ModelSection
    layerskip: LayerSkipSection
    data: DataSection
    trainer: TrainerSection = Field(
        description="transformers.TrainingArguments, output_dir at least"
    )

    @property
    def training_arguments(self) -> dict[str, object]:
        """The Trainer's arguments that the recipe sets."""
        return self.trainer.model_dump(exclude_unset=True)


def preset_names() -> list[str]:
    """Return the presets, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir())


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and the preset it names; the recipe's own values win.

    Raises:
        ValueError: The file is not a YAML mapping, or a key or value is bad. Names every fault with
            its key, its value and the allowed values.
        OSError: The file cannot be read.
    """
    recipe = _read_mapping(path.read_text(encoding="utf-8"), str(path))
    preset = recipe.get("preset")
    if preset is not None:
        if preset not in preset_names():
            names = ", ".join(preset_names())
            raise ValueError(f"{path}: preset={preset!r} must be one of {names}")
        text = (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")
        recipe = _merge(_read_mapping(text, f"preset {preset}"), recipe)
    try:
        return Recipe(**recipe)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(entry)}" for entry in error.errors())
        raise ValueError(f"{path}:\n{faults}") from None


class _Loader(yaml.SafeLoader):
    """Reads 3e-5 as a number like YAML 1.2; YAML 1.1 requires 3.0e-5."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read_mapping(text: str, name: str) -> dict:
    try:
        mapping = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from None
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{name} must hold a mapping of sections, not {type(mapping).__name__}")
    return dict(mapping)


CURRICULUM_KEYS = ("curriculum", "rotation", "exit_layers")
"""Keys that belong together: a recipe with a curriculum takes none of the preset's."""


def _merge(preset: dict, recipe: dict) -> dict:
    """Override the preset's sections with the recipe's, key by key."""
    merged = dict(preset)
    for section, value in recipe.items():
        below = merged.get(section)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            merged[section] = value
            continue
        if section == "layerskip" and "curriculum" in value:
            below = {key: item for key, item in below.items() if key not in CURRICULUM_KEYS}
        merged[section] = {**below, **value}
    return merged


def _fault(error: Mapping) -> str:
    """Format one fault as `key=value: allowed values`."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key}={error['input']!r}: unknown key; {_known_keys(error['loc'])}"
    if error["type"] == "missing":
        presets = ", ".join(preset_names())
        help_ = f": give its keys, or `preset`, one of {presets}" if key == "layerskip" else ""
        return f"{key} is missing{help_}"
    if error["type"].startswith(("greater_than", "less_than")):
        return f"{key}={error['input']!r} must be in {_range(error['loc'])}"
    return f"{key}={error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _section_at(location: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the section of a recipe that holds the key at a location."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        options = get_args(annotation) or (annotation,)
        section = next(
            each for each in options if isinstance(each, type) and issubclass(each, BaseModel)
        )
    return section


def _known_keys(location: tuple[str | int, ...]) -> str:
    """List the known keys at an unknown key's place; of a long list, the similar ones."""
    section = _section_at(location)
    known = list(section.model_fields)
    if section is TrainerSection:
        close = get_close_matches(str(location[-1]), known)
        return f"did you mean {' or '.join(close)}?" if close else "see TrainingArguments"
    return f"known keys: {', '.join(known)}"


def _range(location: tuple[str | int, ...]) -> str:
    """Format the allowed values of a number as an interval."""
    low, high = "(-inf", "inf)"
    for bound in _section_at(location).model_fields[str(location[-1])].metadata:
        match bound:
            case Ge(ge=value):
                low = f"[{value}"
            case Gt(gt=value):
                low = f"({value}"
            case Lt(lt=value):
                high = f"{value})"
            case Le(le=value):
                high = f"{value}]"
    return f"{low}, {high}"
