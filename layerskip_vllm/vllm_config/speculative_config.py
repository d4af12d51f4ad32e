"""`self:E` as vLLM configuration: a `SpeculativeConfig` whose draft is the target itself."""

from __future__ import annotations

import socket

from pydantic import SkipValidation
from vllm.config import SpeculativeConfig
from vllm.config.utils import config
from vllm.utils.hashing import safe_hash

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.models import SUPPORTED_ARCHITECTURES, layerskip_architecture
from layerskip_vllm.version import __version__


@config
class LayerSkipSpeculativeConfig(SpeculativeConfig):
    """vLLM's method `draft_model` with the target's first E layers as the draft.

    The method's name reserves the lookahead slots into which the draft writes
    (`VllmConfig.num_lookahead_tokens`) and satisfies vLLM's asserts on draft models. This class
    overrides what only a second model needs.
    """

    layerskip: SkipValidation[LayerSkipConfig] = None  # type: ignore[assignment]
    num_speculative_tokens_per_batch_size: list[tuple[int, int, int]] | None = None
    package_version: str = __version__
    """Version in the process that made this; workers on other hosts compare it with theirs."""
    on_runner_v2: bool = False
    """Whether Model Runner V2 runs this; see `vllm_config/runner.py`."""

    def __post_init__(self) -> None:
        """Make the target its own draft; vLLM would load a second `ModelConfig` from `self:E`."""
        self.method = "draft_model"
        self.prompt_lookup_max = 0
        self.prompt_lookup_min = 0
        self.draft_model_config = self.target_model_config
        self.draft_parallel_config = self.target_parallel_config
        self.draft_tensor_parallel_size = self.target_parallel_config.tensor_parallel_size
        if self.num_speculative_tokens_per_batch_size is None:
            # Without a schedule vLLM pads a request that starts with one token by K placeholders
            # (`Scheduler.schedule`, pad_spec_decode), for a full CUDA graph. A new request has no
            # exit states, so none of ours would run; the placeholders cost rows of work, and count
            # as drafts in vLLM's metrics.
            self.num_speculative_tokens_per_batch_size = [(1, 1, self.num_speculative_tokens)]
        if self.target_model_config.architecture in SUPPORTED_ARCHITECTURES:
            split = layerskip_architecture(self.target_model_config.architecture)
            self.target_model_config.hf_config.architectures = [split]
            self.update_arch_()

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        """0: a draft step reads one token per request, so it needs none of the token budget."""
        return 0

    def compute_hash(self) -> str:
        """Hash what shapes the compiled graphs: vLLM's factors and the exit layers."""
        factors = (super().compute_hash(), "layerskip", self.layerskip.exit_layers)
        return safe_hash(str(factors).encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        """Show `self:E` or `self:auto` instead of the target's path, in vLLM's log too."""
        return (
            f"LayerSkipSpeculativeConfig(model={self.layerskip.model!r}, "
            f"num_spec_tokens={self.num_speculative_tokens}, layerskip={self.layerskip!r})"
        )


def require_same_version(driver_version: str) -> None:
    """Compare this worker's version with that of the process that configured it.

    Raises:
        RuntimeError: They differ: the options would not mean the same.
    """
    if driver_version != __version__:
        raise RuntimeError(
            f"the worker on {socket.gethostname()} has layerskip_vllm {__version__}, and the "
            f"engine that drives it has {driver_version}: install one version on all hosts"
        )
