"""Old name of `layerskip_vllm.measure.server`, for tests that still import it."""

from layerskip_vllm.measure.server import *  # noqa: F403
