"""`self:E` as vLLM configuration: a `SpeculativeConfig` whose draft is the target itself."""

from __future__ import annotations

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

    The method's name gives the lookahead slots into which the draft writes
    (`VllmConfig.num_lookahead_tokens`) and lets vLLM's asserts on draft models pass. What only a
    second model needs is overridden here.
    """

    layerskip: SkipValidation[LayerSkipConfig] = None  # type: ignore[assignment]
    num_speculative_tokens_per_batch_size: list[tuple[int, int, int]] | None = None
    package_version: str = __version__
    """Of the process that made this; workers on other hosts compare it with theirs."""

    def __post_init__(self) -> None:
        """Make the target its own draft; vLLM's would load a second `ModelConfig` from `self:E`."""
        self.method = "draft_model"
        self.prompt_lookup_max = 0
        self.prompt_lookup_min = 0
        self.draft_model_config = self.target_model_config
        self.draft_parallel_config = self.target_parallel_config
        self.draft_tensor_parallel_size = self.target_parallel_config.tensor_parallel_size
        if self.num_speculative_tokens_per_batch_size is None:
            # Without a schedule vLLM pads a request that starts with one token by K placeholders,
            # for full CUDA graphs, which are off here: rows of work, and drafts in its metrics that
            # nobody drafted (`Scheduler.schedule`, pad_spec_decode).
            self.num_speculative_tokens_per_batch_size = [(1, 1, self.num_speculative_tokens)]
        if self.target_model_config.architecture in SUPPORTED_ARCHITECTURES:
            split = layerskip_architecture(self.target_model_config.architecture)
            self.target_model_config.hf_config.architectures = [split]
            self.update_arch_()

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        """0: a draft step feeds one token a request, so the token budget stays the scheduler's."""
        return 0

    def compute_hash(self) -> str:
        """Hash what shapes the compiled graphs, as vLLM does, with the cut at layer E."""
        factors = (super().compute_hash(), "layerskip", self.layerskip.exit_layer)
        return safe_hash(str(factors).encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        """As vLLM logs it, naming the cut rather than the target's path."""
        return (
            f"LayerSkipSpeculativeConfig(model='self:{self.layerskip.exit_layer}', "
            f"num_spec_tokens={self.num_speculative_tokens}, layerskip={self.layerskip!r})"
        )
