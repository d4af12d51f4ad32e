"""The benchmarked models: checkpoints, prompts and settings."""

from __future__ import annotations

import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.checkpoints import cached, cut, num_parameters, save_cut
from benchmarks.random_llama import LLAMA_128K, SMALL, TINYLLAMA, Shape
from layerskip_vllm.checkpoint.settings import CheckpointSettings, write_settings
from layerskip_vllm.demo.models import MODELS as DEMO_MODELS
from layerskip_vllm.demo.models import DemoModel

if TYPE_CHECKING:
    from benchmarks.calibrate_acceptance import Agreement

logger = logging.getLogger(__name__)

NUM_PROMPTS = 180
"""Enough for the default rounds and batch sizes without repetition."""

KV_CACHE_TOKENS = 24_576
"""Capacity of plain vLLM's KV cache: more than a block of 128 tokens for each of 128 requests."""

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}

MAX_MODEL_LEN = 1024


@dataclass(frozen=True)
class PreparedModel:
    """A model on disk and its settings.

    Attributes:
        name: On the command line and in tables.
        description: One line.
        path: The checkpoint.
        cut_path: Its first E layers with embedding, final norm and LM head, as a checkpoint.
        dtype: Compute dtype of every system.
        exit_layer: E.
        num_layers: L.
        weight_bytes: Size of the weights in that dtype.
        hidden_size: Elements of a hidden state.
        kv_cache_bytes: Budget of every system's KV cache.
        max_model_len: Most tokens of prompt and output together.
        prompts: Token ids.
        max_tokens: Output tokens per request.
        draft_vocab: Options of `self-draft-vocab`; empty if the model does not run it.
        calibration: How its acceptance was calibrated; None if it was not.
    """

    name: str
    description: str
    path: str
    cut_path: str
    dtype: str
    exit_layer: int
    num_layers: int
    weight_bytes: int
    hidden_size: int
    kv_cache_bytes: int
    max_model_len: int
    prompts: list[list[int]]
    max_tokens: int
    draft_vocab: dict[str, object] = field(default_factory=dict)
    calibration: dict[str, object] | None = None

    @classmethod
    def of(cls, checkpoint: Path, cut_checkpoint: Path, **settings) -> PreparedModel:  # type: ignore[no-untyped-def]
        """Read the model's dimensions from the checkpoint.

        Args:
            checkpoint: The model.
            cut_checkpoint: Its first layers.
            **settings: The other attributes.
        """
        config = json.loads((checkpoint / "config.json").read_text())
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        element_bytes = DTYPE_BYTES[settings["dtype"]]
        kv_elements = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
        return cls(
            path=str(checkpoint),
            cut_path=str(cut_checkpoint),
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            weight_bytes=num_parameters(checkpoint) * element_bytes,
            kv_cache_bytes=KV_CACHE_TOKENS * kv_elements * element_bytes,
            max_model_len=min(MAX_MODEL_LEN, config["max_position_embeddings"]),
            **settings,
        )


@dataclass(frozen=True)
class CalibratedModel:
    """A Llama with random weights and calibrated acceptance."""

    name: str
    description: str
    shape: Shape
    exit_layer: int
    dtype: str = "bfloat16"
    acceptance: float = 0.80
    tolerance: float = 0.01
    """Of the calibration; the measured acceptance can be off by 0.03."""
    prompt_len: int = 32
    max_tokens: int = 96
    num_calibration_prompts: int = 24
    calibration_tokens: int = 64
    draft_vocab_size: int | None = None

    def prepare(self) -> PreparedModel:
        """Return the model; build it if the cache does not have it."""
        recipe = (
            f"{self.shape} E={self.exit_layer} {self.dtype} {self.acceptance}+-{self.tolerance} "
            f"{self.num_calibration_prompts}x({self.prompt_len}+{self.calibration_tokens}) "
            "named exit"
        )
        directory = cached(self.name, recipe, self._build)
        draft_vocab: dict[str, object] = {}
        if self.draft_vocab_size is not None:
            draft_vocab["draft_vocab_size"] = self.draft_vocab_size
            draft_vocab["draft_vocab_counts"] = str(directory / "token_counts.json")
        return PreparedModel.of(
            directory / "model",
            directory / "cut",
            name=self.name,
            description=self.description,
            dtype=self.dtype,
            exit_layer=self.exit_layer,
            prompts=self._prompts(NUM_PROMPTS, seed=1),
            max_tokens=self.max_tokens,
            draft_vocab=draft_vocab,
            calibration=json.loads((directory / "dial.json").read_text()),
        )

    def _build(self, directory: Path) -> None:
        import torch

        from benchmarks.calibrate_acceptance import calibrate_acceptance, measure_agreement
        from benchmarks.random_llama import LateLayers

        model = self.shape.build(getattr(torch, self.dtype))
        late_layers = LateLayers(model, self.exit_layer)
        prompts = self._prompts(self.num_calibration_prompts, seed=2)

        def measure(scale: float) -> Agreement:
            late_layers.scale(scale)
            agreement = measure_agreement(model, self.exit_layer, prompts, self.calibration_tokens)
            logger.info("%s: scale %.4f: agreement %.3f", self.name, scale, agreement.mean)
            return agreement

        found = calibrate_acceptance(measure, self.acceptance, self.tolerance)
        (directory / "dial.json").write_text(json.dumps(asdict(found)))
        # The LM head is scaled so that low ids are frequent; only their order is known.
        counts = {token_id: 1 / (1 + token_id) for token_id in range(self.shape.vocab_size)}
        (directory / "token_counts.json").write_text(json.dumps(counts))
        model.save_pretrained(directory / "model")
        # As training does: `self:auto` would not look for a calibrated exit at another depth.
        write_settings(directory / "model", CheckpointSettings((self.exit_layer,)))
        save_cut(model, self.exit_layer, directory / "cut")

    def _prompts(self, num_prompts: int, seed: int) -> list[list[int]]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        size = (num_prompts, self.prompt_len)
        return torch.randint(self.shape.vocab_size, size, generator=generator).tolist()


@dataclass(frozen=True)
class TextModel:
    """One of the demo's trained models, with text prompts."""

    name: str
    description: str
    demo: DemoModel
    exit_layer: int
    dtype: str = "bfloat16"
    max_prompt_len: int = 64
    max_tokens: int = 96

    def prepare(self) -> PreparedModel:
        """Return the model; build it if the cache does not have it."""
        checkpoint = self.demo.prepare()
        return PreparedModel.of(
            checkpoint,
            cut(checkpoint, self.exit_layer),
            name=self.name,
            description=self.description,
            dtype=self.dtype,
            exit_layer=self.exit_layer,
            prompts=self._prompts(checkpoint),
            max_tokens=self.max_tokens,
        )

    def _prompts(self, checkpoint: Path) -> list[list[int]]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        texts = [prompt.text for prompt in self.demo.prompts()]
        return [tokenizer(text)["input_ids"][: self.max_prompt_len] for text in texts]


MODELS: dict[str, CalibratedModel | TextModel] = {
    model.name: model
    for model in (
        CalibratedModel(
            name="dialled",
            description="TinyLlama-1.1B's shape, random weights, match rate set to 0.80",
            shape=TINYLLAMA,
            exit_layer=6,
        ),
        CalibratedModel(
            name="dialled-128k",
            description="Llama-3.2-1B's shape with its vocabulary of 128k, random weights, "
            "match rate set to 0.80",
            shape=LLAMA_128K,
            exit_layer=4,
            draft_vocab_size=36_864,
        ),
        TextModel(
            name="trained",
            description="layerskip-python-10m, trained for early exit, on held-out Python source",
            demo=DEMO_MODELS["python-10m"],
            exit_layer=4,
        ),
        TextModel(
            name="untrained",
            description="SmolLM2-135M as shipped, not trained for early exit, on HumanEval",
            demo=DEMO_MODELS["smollm2"],
            exit_layer=10,
        ),
        CalibratedModel(
            name="small",
            description="a tiny Llama with random weights in float32, for trials and tests",
            shape=SMALL,
            exit_layer=2,
            dtype="float32",
            max_tokens=48,
        ),
    )
}

DEFAULT_MODELS = ("dialled", "dialled-128k", "trained", "untrained")
"""The models of `make bench`."""


def prepare(name: str) -> PreparedModel:
    """Prepare a model in a separate process, which frees its memory at the end."""
    logger.info("%s: preparing", name)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(MODELS[name].prepare).result()
