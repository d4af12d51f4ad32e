"""Exactness: `self:E` against plain vLLM with the same dtype, backend, runner and compilation."""

from __future__ import annotations

import random
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.comparison import Reference, differences, max_gap
from benchmarks.gpu.engines import ON_A_GPU, StartedEngine
from benchmarks.gpu.records import Exactness, Failure
from benchmarks.random_llama import LateLayers, Shape
from benchmarks.systems import FIXED

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

    from benchmarks.gpu.records import Emit

NUM_SPECULATIVE_TOKENS = 4
NUM_PROMPTS = 16
NUM_LOGPROBS = 20
MAX_NUM_SEQS = 8  # half of the prompts: requests then join a batch that decodes
RANDOM_SHAPE = Shape(
    vocab_size=4096,
    hidden_size=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    intermediate_size=1408,
)
RANDOM_SCALE = 0.3
"""Of the random model's remaining layers: some drafts are accepted and some are not."""
EXIT_LAYERS = {"random": 3, "python-10m": 4}
AUTO_EXIT_LAYERS = {"random": [2, 3, 5], "python-10m": [2, 4, 6]}


@dataclass(frozen=True)
class Variant:
    """An engine of the comparison.

    Attributes:
        is_self: `self:E`, not plain.
        is_eager: Not compiled and without CUDA graphs; otherwise vLLM's defaults.
        async_scheduling: None leaves it to vLLM.
        is_auto: Whether its exit and K are chosen step by step, by `self:auto`.
    """

    is_self: bool
    is_eager: bool
    async_scheduling: bool | None = None
    is_auto: bool = False

    @property
    def name(self) -> str:
        """In the report."""
        system = "self:auto" if self.is_auto else "self:E" if self.is_self else "plain"
        words = [system, "eager" if self.is_eager else "compiled"]
        if self.async_scheduling is not None:
            words.append("async" if self.async_scheduling else "sync")
        return ", ".join(words)


PLAIN = (Variant(False, False), Variant(False, True))  # by is_eager
RUNNER_VARIANTS = {
    "V1": (PLAIN[0], Variant(True, False), PLAIN[1], Variant(True, True)),
    "V2": (
        PLAIN[0],
        Variant(True, False, True),
        PLAIN[1],
        Variant(True, True, True),
        Variant(True, False, True, is_auto=True),
        Variant(True, False, False),
        Variant(True, True, False),
    ),
}
"""Each model runner's variants, the most important first. A plain engine precedes the engines to
compare with it."""
VARIANTS = {variant.name: variant for names in RUNNER_VARIANTS.values() for variant in names}


@dataclass(frozen=True)
class ExactnessTask:
    """One model in one dtype, in several engines, one after another in this process.

    Attributes:
        job: Name of the job.
        model: "random" or "python-10m".
        dtype: A difference in float32 fails the check.
        attention_backend: None leaves it to vLLM.
        variants: Names from VARIANTS.
        directory: For the random model's checkpoint.
        num_prompts: Requests.
        max_tokens: Output tokens of each.
        on_gpu: Whether to pass the arguments that only a GPU's engine takes.
    """

    job: str
    model: str
    dtype: str
    attention_backend: str | None
    variants: list[str]
    directory: str
    num_prompts: int = NUM_PROMPTS
    max_tokens: int = 128
    on_gpu: bool = True

    def run(self, emit: Emit) -> None:
        """Emit one record per engine. An engine that fails does not stop the others."""
        checkpoint = self._checkpoint()
        prompts = _prompts(self.model, self.num_prompts)
        references: dict[bool, Reference] = {}  # by is_eager
        for name in self.variants:
            try:
                self._run_variant(VARIANTS[name], checkpoint, prompts, references, emit)
            except Exception as error:
                traceback.print_exc()
                tail = traceback.format_exc().splitlines()[-4:]
                emit(Failure(f"{self.job}: {name}", type(error).__name__, tail))

    def _run_variant(
        self,
        variant: Variant,
        checkpoint: Path,
        prompts: list[list[int]],
        references: dict[bool, Reference],
        emit: Emit,
    ) -> None:
        if variant.is_self and variant.is_eager not in references:
            raise RuntimeError("the plain engine to compare with did not run")
        started = StartedEngine(self.job, variant.name, self._arguments(variant, checkpoint))
        try:
            emit(started.start)
            llm = started.engine.llm
            token_ids = _token_ids(_generate(llm, prompts, self.max_tokens))
            if not variant.is_self:
                reference = _reference(llm, prompts, token_ids, self.max_tokens)
                references[variant.is_eager] = reference
        finally:
            started.close()
        # Comparing the second plain engine with the first shows the effect of compiling alone.
        against = variant.is_eager if variant.is_self else not variant.is_eager
        if against in references:
            emit(self._compared(variant, PLAIN[against].name, references[against], token_ids))

    def _compared(
        self,
        variant: Variant,
        reference_name: str,
        reference: Reference,
        token_ids: list[list[int]],
    ) -> Exactness:
        found = differences(reference, token_ids)
        first = asdict(found[0]) if found else {}
        return Exactness(
            job=self.job,
            engine=variant.name,
            reference=reference_name,
            is_required=variant.is_self and self.dtype == "float32",
            num_equal=len(token_ids) - len(found),
            num_requests=len(token_ids),
            max_gap=max_gap(found),
            **first,
        )

    def _arguments(self, variant: Variant, checkpoint: Path) -> dict[str, object]:
        arguments: dict[str, object] = {
            "model": str(checkpoint),
            "dtype": self.dtype,
            "max_model_len": 256,
            "max_num_seqs": min(MAX_NUM_SEQS, self.num_prompts),
            "kv_cache_memory_bytes": (1 << 30) if self.on_gpu else (64 << 20),
            "enforce_eager": variant.is_eager,
            "seed": 0,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
        }
        if self.on_gpu:
            arguments |= ON_A_GPU
        if self.attention_backend is not None:
            arguments["attention_backend"] = self.attention_backend
        if variant.async_scheduling is not None:
            arguments["async_scheduling"] = variant.async_scheduling
        return arguments | (self._speculation(variant.is_auto) if variant.is_self else {})

    def _speculation(self, is_auto: bool) -> dict[str, object]:
        spec_model = "self:auto" if is_auto else f"self:{EXIT_LAYERS[self.model]}"
        options = {"exit_layers": AUTO_EXIT_LAYERS[self.model]} if is_auto else FIXED
        return {
            "spec_model": spec_model,
            "spec_tokens": NUM_SPECULATIVE_TOKENS,
            "additional_config": {"layerskip": options},
        }

    def _checkpoint(self) -> Path:
        if self.model == "python-10m":
            from layerskip_vllm.demo.models import MODELS

            return MODELS["python-10m"].prepare()
        import torch

        directory = Path(self.directory) / f"random-{self.dtype}"
        model = RANDOM_SHAPE.build(getattr(torch, self.dtype))
        LateLayers(model, EXIT_LAYERS["random"]).scale(RANDOM_SCALE)
        model.save_pretrained(directory)
        return directory


def _prompts(model: str, num_prompts: int) -> list[list[int]]:
    """Token ids: of held-out Python source, or random ones of several lengths."""
    if model == "random":
        numbers = random.Random(0)
        lengths = [numbers.choice((5, 20, 60)) for _ in range(num_prompts)]
        return [[numbers.randrange(1, RANDOM_SHAPE.vocab_size) for _ in range(n)] for n in lengths]
    from transformers import AutoTokenizer

    from layerskip_vllm.demo.models import MODELS

    demo = MODELS[model]
    tokenizer = AutoTokenizer.from_pretrained(demo.prepare())
    texts = [prompt.text for prompt in demo.prompts()]
    return [
        tokenizer(texts[i % len(texts)])["input_ids"][: 64 - i // len(texts)]
        for i in range(num_prompts)
    ]


def _generate(
    llm: LLM, prompts: list[list[int]], max_tokens: int, logprobs: int | None = None
) -> list[RequestOutput]:
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, logprobs=logprobs
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return llm.generate(inputs, params, use_tqdm=False)


def _token_ids(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def _reference(
    llm: LLM, prompts: list[list[int]], token_ids: list[list[int]], max_tokens: int
) -> Reference:
    """Ask plain vLLM for log-probabilities, in a second run: the first stays as users run it."""
    outputs = _generate(llm, prompts, max_tokens, NUM_LOGPROBS)
    logprobs: list[list[Mapping[int, float]]] = [
        [{token: entry.logprob for token, entry in at.items()} for at in output.outputs[0].logprobs]
        for output in outputs
    ]
    return Reference(token_ids, logprobs, _token_ids(outputs))
