"""Random models whose best exit depends on the text: built, calibrated and measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.calibrate_acceptance import calibrate_acceptance, measure_agreements
from benchmarks.checkpoints import cached
from benchmarks.profiled_llama import ProfiledLlama, token_range
from benchmarks.random_llama import SMALL, TINYLLAMA, Shape
from layerskip_vllm.checkpoint.settings import CheckpointSettings, write_settings
from layerskip_vllm.vllm_config.exit_candidates import of_depth

if TYPE_CHECKING:
    from benchmarks.calibrate_acceptance import Agreement

logger = logging.getLogger(__name__)

HIGHEST_STRENGTH = 2.0
"""Of a gate in the search: far more than any agreement here needs."""


@dataclass(frozen=True)
class TextSet:
    """Texts of one kind, made of tokens of their own.

    Attributes:
        name: In tables.
        middle: Strength of the gates between the first and the last exit: at 0 all exits agree
            alike.
        late: Strength of the gates after the last exit; None to calibrate it.
        agreement: Of the last exit with the whole model, to which `late` is calibrated.
        pays: Whether drafting should be faster than plain decoding.
    """

    name: str
    middle: float = 0.0
    late: float | None = None
    agreement: float | None = None
    pays: bool = True


@dataclass(frozen=True)
class ProfiledModel:
    """A random Llama with a profile of its exits for each set of texts."""

    name: str
    shape: Shape
    exit_layers: tuple[int, int, int]
    text_sets: tuple[TextSet, ...]
    dtype: str = "bfloat16"
    prompt_len: int = 32
    tolerance: float = 0.02
    num_calibration_prompts: int = 16
    calibration_tokens: int = 48

    def prepare(self) -> Path:
        """Return the checkpoint's folder; calibrate the model first if the cache lacks it.

        Beside the checkpoint, `profiles.json` holds each set's strengths and measured agreements.
        """
        return cached(self.name, repr(self), self._build) / "model"

    def prompts(self, set_index: int, num_prompts: int, seed: int = 1) -> list[list[int]]:
        """Random token ids of one set, [num_prompts][prompt_len]."""
        import torch

        ids = token_range(self.shape.vocab_size, len(self.text_sets), set_index)
        generator = torch.Generator().manual_seed(seed)
        size = (num_prompts, self.prompt_len)
        return torch.randint(ids.start, ids.stop, size, generator=generator).tolist()

    def measure(self, llama: ProfiledLlama, set_index: int) -> list[Agreement]:
        """How often each exit agrees with the whole model on texts of one set."""
        prompts = self.prompts(set_index, self.num_calibration_prompts, seed=2)
        return measure_agreements(llama.model, self.exit_layers, prompts, self.calibration_tokens)

    def make(self) -> ProfiledLlama:
        """Draw the weights; the gates are closed."""
        import torch

        model = self.shape.build(getattr(torch, self.dtype))
        return ProfiledLlama(model, self.exit_layers[0], len(self.text_sets))

    def calibrate(self, llama: ProfiledLlama, set_index: int) -> dict[str, object]:
        """Open the gates for one set; returns their strengths and the measured agreements."""
        text_set = self.text_sets[set_index]
        first, last = self.exit_layers[0], self.exit_layers[-1]
        llama.set_gates(range(first, last), set_index, text_set.middle)

        def measure(late: float) -> Agreement:
            llama.set_gates(range(last, self.shape.num_layers), set_index, late)
            found.update(late=late, by_exit=self.measure(llama, set_index))
            means = ", ".join(f"{agreement.mean:.3f}" for agreement in found["by_exit"])
            logger.info("%s, %s: strength %.4f: %s", self.name, text_set.name, late, means)
            return found["by_exit"][-1]

        found: dict = {"name": text_set.name, "middle": text_set.middle}
        if text_set.late is not None:
            measure(text_set.late)
        else:
            assert text_set.agreement is not None
            calibrate_acceptance(measure, text_set.agreement, self.tolerance, high=HIGHEST_STRENGTH)
        return found

    def _build(self, directory: Path) -> None:
        llama = self.make()
        profiles = [self.calibrate(llama, index) for index in range(len(self.text_sets))]
        llama.model.save_pretrained(directory / "model")
        if self.exit_layers != of_depth(self.shape.num_layers):
            first, middle, last = self.exit_layers
            write_settings(directory / "model", CheckpointSettings((middle, first, last)))
        text = json.dumps(profiles, default=asdict, indent=1)
        (directory / "profiles.json").write_text(text)


def _text_sets(middle: float, late: float) -> tuple[TextSet, ...]:
    return (
        TextSet("shallow", agreement=0.80),
        TextSet("deep", middle=middle, agreement=0.87),
        TextSet("none", late=late, pays=False),
    )


def mean_agreements(profiles: Sequence[dict]) -> dict[str, list[float]]:
    """Mean agreement of each exit by set, from `profiles.json`."""
    return {
        profile["name"]: [agreement["mean"] for agreement in profile["by_exit"]]
        for profile in profiles
    }


PROFILED_1B = ProfiledModel(
    "profiled-1b", TINYLLAMA, exit_layers=(4, 7, 11), text_sets=_text_sets(middle=3.0, late=4.0)
)
"""TinyLlama-1.1B's shape with the exits that `self:auto` takes at its depth."""

PROFILED_SMALL = ProfiledModel(
    "profiled-small",
    SMALL,
    exit_layers=(2, 3, 4),
    text_sets=_text_sets(middle=2.5, late=4.0),
    dtype="float32",
    num_calibration_prompts=12,
    calibration_tokens=32,
    tolerance=0.04,
)
"""For tests and trials."""
