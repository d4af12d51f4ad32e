"""Which of vLLM's model runners `self:E` uses."""

from vllm import envs


def uses_runner_v2() -> bool:
    """Whether Model Runner V2 is asked for; left to choose, vLLM takes V1 for `self:E`."""
    return envs.VLLM_USE_V2_MODEL_RUNNER is True
