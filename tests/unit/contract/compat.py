"""Hooks and repairs: `compat/`. What they wrap, and what else they rely on."""

from tests.unit.contract.configuration import ENGINE_ARGS, VLLM_CONFIG
from tests.unit.contract.expectations import Calls, Has, Reads, Sets, Takes
from tests.unit.contract.telemetry import EC_METRICS

CPU_COMMUNICATOR = "vllm.distributed.device_communicators.cpu_communicator"
LORA_OPS = "vllm.lora.ops.torch_ops.lora_ops"
RAY_EXECUTOR = "vllm.v1.executor.ray_executor_v2"
RAY_METRICS = "vllm.v1.metrics.ray_wrappers"

CONFIGURATION = (
    Takes(f"{ENGINE_ARGS}.add_cli_args", "Wrapped: adds our flags.", positional=("parser",)),
    Takes(
        f"{ENGINE_ARGS}.create_speculative_config",
        "Wrapped: handles `self:E` and early exit.",
        positional=("target_model_config", "target_parallel_config"),
    ),
    Takes(
        f"{VLLM_CONFIG}._get_v2_model_runner_unsupported_features",
        "Wrapped: rules V2 out where V1 runs `self:E`.",
    ),
    Takes(
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        "Wrapped: checks a request's options, and admits `logit_bias` and `min_p`.",
        positional=("speculative_config",),
    ),
)

LORA = (
    *(
        Takes(
            f"{LORA_OPS}:{function}",
            "Wrapped: repairs rows without an adapter on CPU.",
            positional=("inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor"),
        )
        for function in ("bgmv_expand", "bgmv_expand_slice")
    ),
    Has(
        "vllm.lora.punica_wrapper.punica_cpu",
        "Wrapped too, because this module imports them by name.",
        ("bgmv_expand", "bgmv_expand_slice"),
    ),
)

PARALLEL = (
    Takes(
        "vllm.v1.executor.abstract:Executor.get_class",
        "Wrapped: returns our executor for Ray on CPU.",
        positional=("vllm_config",),
    ),
    Has(
        "vllm.config:ParallelConfig",
        "The backends choose Ray; the driver maps no device.",
        ("distributed_executor_backend", "data_parallel_backend", "assigned_physical_gpu_ids"),
    ),
    Has(
        "vllm.envs:VLLM_USE_RAY_V2_EXECUTOR_BACKEND",
        "We refuse 0; later releases have only one Ray executor.",
        until="0.32",
    ),
    Has(
        "vllm.platforms.interface:Platform", "Set to `CPU`, to place workers.", ("ray_device_key",)
    ),
    Takes(
        "vllm.v1.executor.ray_utils:initialize_ray_cluster",
        "Makes bundles with that key.",
        positional=("parallel_config",),
    ),
    Has(
        f"{RAY_EXECUTOR}:RayExecutorV2",
        "Overridden: no resources beyond the bundle's.",
        ("_get_actor_resource_kwargs",),
    ),
    Reads(
        f"{RAY_EXECUTOR}:RayExecutorV2._build_runtime_env",
        "Overridden, original called; adds `OMP_NUM_THREADS`.",
        ("runtime_env.setdefault('env_vars', {})",),
    ),
    Calls(
        f"{RAY_EXECUTOR}:RayExecutorV2._init_executor",
        "Makes actors of the global class that we replace.",
        "ray.remote",
        num_positional=1,
    ),
    Reads(
        f"{RAY_EXECUTOR}:RayExecutorV2._init_executor",
        "Overridden, original called; it uses what we replace.",
        ("RayWorkerProc", "self._get_actor_resource_kwargs()", "self._build_runtime_env()"),
    ),
    Takes(
        f"{RAY_EXECUTOR}:RayWorkerProc.get_node_and_physical_gpu_ids",
        "Replaced: a CPU is not an accelerator for Ray.",
    ),
    Reads(
        f"{RAY_EXECUTOR}:RayWorkerProc.get_node_and_physical_gpu_ids",
        "Asks Ray for accelerators with that key.",
        ("current_platform.ray_device_key",),
    ),
    Takes(
        f"{RAY_EXECUTOR}:RayWorkerProc.initialize_worker",
        "Overridden, original called without devices.",
        keyword=("assigned_physical_gpu_ids",),
    ),
    Takes(
        f"{CPU_COMMUNICATOR}:_CPUSHMDistributed.make_group_name",
        "Wrapped: tells hosts apart.",
        positional=("communicator",),
    ),
    Reads(
        f"{CPU_COMMUNICATOR}:CpuCommunicator._all_group_ranks_share_shm_group_name",
        "Compares the names of all ranks; uses no shared memory if they differ.",
        ("_CPUSHMDistributed.make_group_name(self)",),
    ),
)

METRICS = (
    Sets(f"{EC_METRICS}:ECConnectorProm.__init__", "Wrapped: adds our metrics.", ("prom_metrics",)),
    Has(
        f"{EC_METRICS}:ECConnectorProm",
        "Holds Prometheus's metric classes.",
        ("_gauge_cls", "_counter_cls", "_histogram_cls"),
    ),
    Takes(
        f"{EC_METRICS}:ECConnectorLogging.observe",
        "Wrapped: omits our numbers from the log.",
        positional=("transfer_stats_data",),
    ),
    Has(
        f"{RAY_METRICS}:RayPrometheusStatLogger",
        "Replaced by a subclass with Ray's metrics.",
        ("_ec_connector_cls",),
    ),
    *(
        Has(
            f"{RAY_METRICS}:Ray{kind}Wrapper",
            "Makes one child per engine, as Prometheus's does.",
            ("labels",),
        )
        for kind in ("Gauge", "Counter", "Histogram")
    ),
)

EXPECTATIONS = (*CONFIGURATION, *LORA, *PARALLEL, *METRICS)
