"""Every method of vLLM's that is wrapped at run time; `patches/README.md` is their ledger."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import Counter, Histogram
from vllm import SamplingParams, envs
from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig, VllmConfig
from vllm.distributed.device_communicators.cpu_communicator import (
    CpuCommunicator,
    _CPUSHMDistributed,
)
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorLogging, ECConnectorProm
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.model_executor import models
from vllm.model_executor.models import ModelRegistry
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor.abstract import Executor

from layerskip_vllm.compat.host_identity import host_identity
from layerskip_vllm.compat.ray_metrics import report_to_ray
from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.config import OPTIONS_KEY
from layerskip_vllm.models import (
    SUPPORTED_ARCHITECTURES,
    early_exit_architecture,
    layerskip_architecture,
)
from layerskip_vllm.runner_v1.sampling import biases_drafts_itself
from layerskip_vllm.vllm_config import early_exit, self_speculation
from layerskip_vllm.vllm_config.flags import add_cli_args

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser


def register_models() -> None:
    """Make vLLM know our architectures; the module of each loads when it is used."""
    known = ModelRegistry.get_supported_archs()
    for architecture, module in SUPPORTED_ARCHITECTURES.items():
        for name in (layerskip_architecture(architecture), early_exit_architecture(architecture)):
            if name not in known:
                ModelRegistry.register_model(name, f"{module}:{name}")


class Hook(NamedTuple):
    """A method of vLLM's that is wrapped, unless vLLM has the patch that makes it unnecessary."""

    host: type
    name: str
    wrapper: Callable
    is_patched: Callable[[], bool]


def install() -> None:
    """Install the hooks that this vLLM needs. Idempotent."""
    for hook in (*HOOKS, *(CPU_HOOKS if current_platform.is_cpu() else ())):
        if not hook.is_patched():
            wrap(hook.host, hook.name, hook.wrapper)
    if not _has_method_metrics():
        report_to_ray()
    if _has_factories():
        SpeculativeConfig.register_factory(_own_speculative_config)
    if current_platform.is_cpu():
        CpuPlatform.ray_device_key = "CPU"


def _add_cli_args(
    original: Callable[..., FlexibleArgumentParser], parser: FlexibleArgumentParser
) -> FlexibleArgumentParser:
    return add_cli_args(original(parser))


def _own_speculative_config(
    engine_args: EngineArgs,
    target_model_config: ModelConfig,
    target_parallel_config: ParallelConfig,
) -> SpeculativeConfig | None:
    """What `self:E` asks for; None without it, the model cut where early exit is asked for."""
    if self_speculation.asks_for_self_speculation(engine_args):
        return self_speculation.create_speculative_config(
            engine_args, target_model_config, target_parallel_config
        )
    early_exit.cut_model(engine_args, target_model_config)
    return None


def _create_speculative_config(
    original: Callable[..., SpeculativeConfig | None],
    engine_args: EngineArgs,
    target_model_config: ModelConfig,
    target_parallel_config: ParallelConfig,
) -> SpeculativeConfig | None:
    arguments = (engine_args, target_model_config, target_parallel_config)
    return _own_speculative_config(*arguments) or original(*arguments)


def _has_factories() -> bool:
    return hasattr(SpeculativeConfig, "register_factory")


def _v2_model_runner_unsupported_features(
    original: Callable[[VllmConfig], list[str]], vllm_config: VllmConfig
) -> list[str]:
    ours = hasattr(vllm_config.speculative_config, "layerskip")
    return original(vllm_config) + (["LayerSkip self-speculation"] if ours else [])


def _validate_spec_decode(
    original: Callable[[SamplingParams, SpeculativeConfig | None], None],
    sampling_params: SamplingParams,
    speculative_config: SpeculativeConfig | None,
) -> None:
    if speculative_config is not None and hasattr(speculative_config, "layerskip"):
        speculative_config.verify_sampling_params(sampling_params)
        if sampling_params.logprob_token_ids:
            # vLLM gathers these where it samples plainly only: in a batch with drafts and another
            # request's logprobs, the shapes do not fit and the engine dies.
            raise VLLMValidationError(
                "logprob_token_ids is not supported with self-speculation (self:E)"
            )
        # The original refuses logit_bias, which our rejection sampler applies. What else it
        # refuses stays refused.
        sampling_params = copy(sampling_params)
        sampling_params.logit_bias = None
    original(sampling_params, speculative_config)


def _has_flags() -> bool:
    return "--speculative-model" in inspect.getsource(EngineArgs.add_cli_args)


def _serves_first_layers() -> bool:
    # Read, not imported: an import of a model costs each process seconds.
    (llama,) = (path / "llama.py" for path in map(Path, models.__path__))
    return "is_unused_checkpoint_weight" in llama.read_text(encoding="utf-8")


def _receive_step_stats(
    original: Callable[..., None],
    receiver: ECConnectorProm,
    vllm_config: VllmConfig,
    labelnames: list[str],
    per_engine_labelvalues: dict[int, list[object]],
) -> None:
    """Let the receiver of a connector's stats, of which there is none here, be our metrics."""
    original(receiver, vllm_config, labelnames, per_engine_labelvalues)
    if hasattr(vllm_config.speculative_config, "layerskip"):
        receiver.prom_metrics = vllm_config.speculative_config.build_prom_metrics(
            {Counter: receiver._counter_cls, Histogram: receiver._histogram_cls},
            labelnames,
            per_engine_labelvalues,
        )


def _leave_step_stats_out_of_the_log(
    original: Callable[..., None], connector_logging: ECConnectorLogging, stats: Mapping
) -> None:
    if OPTIONS_KEY not in stats:
        original(connector_logging, stats)


def _has_method_metrics() -> bool:
    return hasattr(SpeculativeConfig, "build_prom_metrics")


HOOKS = (
    Hook(
        EngineArgs,
        "add_cli_args",
        _add_cli_args,
        lambda: _has_flags() and _serves_first_layers(),
    ),
    Hook(EngineArgs, "create_speculative_config", _create_speculative_config, _has_factories),
    Hook(
        VllmConfig,
        "_get_v2_model_runner_unsupported_features",
        _v2_model_runner_unsupported_features,
        lambda: hasattr(SpeculativeConfig, "get_v2_model_runner_unsupported_features"),
    ),
    Hook(
        SamplingParams,
        "_validate_spec_decode",
        _validate_spec_decode,
        lambda: biases_drafts_itself() and hasattr(SpeculativeConfig, "verify_sampling_params"),
    ),
    Hook(ECConnectorProm, "__init__", _receive_step_stats, _has_method_metrics),
    Hook(ECConnectorLogging, "observe", _leave_step_stats_out_of_the_log, _has_method_metrics),
)


def _executor_class(
    original: Callable[[VllmConfig], type[Executor]], vllm_config: VllmConfig
) -> type[Executor]:
    parallel_config = vllm_config.parallel_config
    if parallel_config.data_parallel_backend == "ray":
        # Its placement groups have one more bundle with a CPU, which would pass for a worker's.
        raise ValueError("--data-parallel-backend ray is not supported on CPU; use mp")
    if parallel_config.distributed_executor_backend != "ray":
        return original(vllm_config)
    if not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND:
        raise ValueError(
            "VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0 chooses a Ray executor that has no workers on CPU; "
            "leave it out"
        )
    from layerskip_vllm.compat.ray_cpu import CPURayExecutor, share_ray_address

    share_ray_address()
    return CPURayExecutor


def _has_ray_workers_on_cpu() -> bool:
    return "ray_device_key" in inspect.getsource(CpuPlatform)


def _shared_memory_name(
    original: Callable[[CpuCommunicator], str], communicator: CpuCommunicator
) -> str:
    return f"{original(communicator)}-{host_identity()}"


CPU_HOOKS = (
    Hook(Executor, "get_class", _executor_class, _has_ray_workers_on_cpu),
    Hook(
        _CPUSHMDistributed,
        "make_group_name",
        _shared_memory_name,
        lambda: hasattr(_CPUSHMDistributed, "host_identifier"),
    ),
)
"""Installed where vLLM runs on CPUs."""
