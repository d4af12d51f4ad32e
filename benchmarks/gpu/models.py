"""The models of the speed table: random weights, made on the spot, with calibrated acceptance."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.calibrate_acceptance import Agreement, Calibration, calibrate_acceptance
from benchmarks.gpu.records import Checkpoint
from benchmarks.random_llama import LLAMA_7B, LLAMA_128K, SMALL, TINYLLAMA, LateLayers, Shape

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from benchmarks.gpu.records import Emit

logger = logging.getLogger(__name__)

PREPARED = "prepared.json"
"""Written last, so that it shows a complete checkpoint."""


@dataclass(frozen=True)
class SpeedModel:
    """A shape, and the calibration of its acceptance.

    Attributes:
        scale: First guess of the remaining layers' scale.
        draft_vocab_size: Of the system with a draft vocabulary; None if the whole one is small.
    """

    name: str
    description: str
    shape: Shape
    exit_layer: int
    acceptance: float
    scale: float
    draft_vocab_size: int | None = None
    dtype: str = "bfloat16"
    tolerance: float = 0.02


MODELS = {
    model.name: model
    for model in (
        SpeedModel("1b", "Llama-3.2-1B's shape", LLAMA_128K, 4, 0.80, 0.0586, 32_768),
        SpeedModel("1b-065", "Llama-3.2-1B's shape", LLAMA_128K, 4, 0.65, 0.105, 32_768),
        SpeedModel("tinyllama", "TinyLlama-1.1B's shape", TINYLLAMA, 6, 0.80, 0.0508),
        SpeedModel("7b", "Llama-2-7B's shape", LLAMA_7B, 8, 0.80, 0.045),
        SpeedModel("small", "a tiny Llama, for tests", SMALL, 2, 0.80, 0.1, 256, "float32", 0.05),
    )
}


@dataclass(frozen=True)
class CheckpointTask:
    """Make a model's checkpoint, and the one that is cut to its first E layers.

    Attributes:
        model: Name from MODELS.
        directory: Where; PREPARED appears in it when all is there.
        device: Where the weights are drawn and calibrated.
        prompt_len: Of the calibration's and the benchmark's prompts.
        max_tokens: Output tokens of a benchmark's request.
        num_prompts: Of the benchmark.
        num_calibration_prompts: Texts by which the agreement is measured.
        calibration_tokens: Length of each.
    """

    model: str
    directory: str
    device: str = "cuda"
    prompt_len: int = 16
    max_tokens: int = 256
    num_prompts: int = 64
    num_calibration_prompts: int = 24
    calibration_tokens: int = 64

    def run(self, emit: Emit) -> None:
        """Emit one record at the end."""
        import torch

        from benchmarks.calibrate_acceptance import measure_agreement

        started = time.perf_counter()
        settings, directory = MODELS[self.model], Path(self.directory)
        model = settings.shape.build(getattr(torch, settings.dtype), self.device)
        late_layers = LateLayers(model, settings.exit_layer)
        prompts = self._prompts(self.num_calibration_prompts, seed=3)

        def measure(scale: float) -> Agreement:
            late_layers.scale(scale)
            found = measure_agreement(model, settings.exit_layer, prompts, self.calibration_tokens)
            logger.info("scale %.4f: agreement %.3f", scale, found.mean)
            return found

        calibration = find_scale(measure, settings.acceptance, settings.tolerance, settings.scale)
        save(model, settings.exit_layer, directory)
        weight_bytes = self._save_settings(calibration)
        emit(
            Checkpoint(
                model=self.model,
                description=settings.description,
                scale=calibration.scale,
                agreement=calibration.agreement.mean,
                new_ngrams=calibration.agreement.new_ngrams,
                num_tries=len(calibration.tries),
                weight_bytes=weight_bytes,
                making_s=time.perf_counter() - started,
            )
        )

    def _save_settings(self, calibration: Calibration) -> int:
        """Write PREPARED and the token counts; returns the weights' bytes."""
        from benchmarks.models import PreparedModel

        settings, directory = MODELS[self.model], Path(self.directory)
        draft_vocab: dict[str, object] = {}
        if settings.draft_vocab_size is not None:
            # The LM head is scaled so that low ids are frequent; only their order is known.
            counts = {token_id: 1 / (1 + token_id) for token_id in range(settings.shape.vocab_size)}
            (directory / "token_counts.json").write_text(json.dumps(counts))
            draft_vocab["draft_vocab_size"] = settings.draft_vocab_size
            draft_vocab["draft_vocab_counts"] = str(directory / "token_counts.json")
        prepared = PreparedModel.of(
            directory / "model",
            directory / "cut",
            name=self.model,
            description=settings.description,
            dtype=settings.dtype,
            exit_layer=settings.exit_layer,
            prompts=self._prompts(self.num_prompts, seed=1),
            max_tokens=self.max_tokens,
            draft_vocab=draft_vocab,
            calibration=asdict(calibration),
        )
        (directory / PREPARED).write_text(json.dumps(asdict(prepared)))
        return prepared.weight_bytes

    def _prompts(self, num_prompts: int, seed: int) -> list[list[int]]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        size = (num_prompts, self.prompt_len)
        vocab_size = MODELS[self.model].shape.vocab_size
        return torch.randint(vocab_size, size, generator=generator).tolist()


def find_scale(
    measure: Callable[[float], Agreement], target: float, tolerance: float, guess: float
) -> Calibration:
    """Calibrate from a good guess: mostly one measurement, then a bisection around it."""
    tries: list[tuple[float, float]] = []

    def noted(scale: float) -> Agreement:
        agreement = measure(scale)
        tries.append((scale, agreement.mean))
        return agreement

    first = noted(guess)
    if abs(first.mean - target) <= tolerance:
        return Calibration(guess, first, tries)
    low, high = 0.0, guess
    if first.mean > target:
        low, high = guess, 2 * guess
        while noted(high).mean > target:
            low, high = high, 2 * high
    found = calibrate_acceptance(noted, target, tolerance, low, high)
    return Calibration(found.scale, found.agreement, tries)


def save(model: LlamaForCausalLM, exit_layer: int, directory: Path) -> None:
    """Write `model`, a file per layer, and `cut`, which links those of the first E layers.

    vLLM reads every `*.safetensors` of a directory that has no index.
    """
    from safetensors.torch import save_file

    whole, cut = directory / "model", directory / "cut"
    for path, num_layers in ((whole, len(model.model.layers)), (cut, exit_layer)):
        path.mkdir(parents=True, exist_ok=True)
        model.config.num_hidden_layers = num_layers
        model.config.architectures = ["LlamaForCausalLM"]
        model.config.save_pretrained(path)
    for name, weights in _files(model).items():
        save_file({key: value.contiguous().cpu() for key, value in weights.items()}, whole / name)
        if _layer_number(name) < exit_layer:
            (cut / name).symlink_to(whole / name)


def _files(model: LlamaForCausalLM) -> dict[str, dict[str, torch.Tensor]]:
    """The weights by file; tied ones are written once."""
    files: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        layer = key.removeprefix("model.layers.").split(".")[0]
        name = f"layer-{int(layer):03}" if layer.isdigit() else "rest"
        files.setdefault(f"{name}.safetensors", {})[key] = value
    return files


def _layer_number(name: str) -> int:
    """Number of the layer in a file; -1 for weights outside the layers."""
    number = name.removeprefix("layer-").split(".")[0]
    return int(number) if number.isdigit() else -1
