"""Requests to `self:E` take all sampling parameters, and their options are checked before they run.

Target: vllm.sampling_params:SamplingParams._validate_spec_decode
Reason: vLLM refuses `logit_bias` and `min_p` under speculation, because its V1 rejection sampler
    omits them at draft positions. Our verifier applies them as plain decoding does. A bad value in
    a request's `extra_args` must fail before the request runs, and vLLM has no hook for that.
How: Under self-speculation, refuses bad `extra_args`, then calls the original on a copy without
    `logit_bias` and `min_p`.
Upstream: 0010-sampling-params-of-a-speculative-config.patch
May go: When the oldest supported vLLM asks the speculative configuration about sampling parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from vllm import SamplingParams
from vllm.config import SpeculativeConfig
from vllm.exceptions import VLLMValidationError

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.scheduling.request_options import max_drafts_of


def is_needed() -> bool:
    """By release: no vLLM checks our requests' options."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the method that checks sampling parameters against speculation."""
    wrap(SamplingParams, "_validate_spec_decode", _validate_spec_decode)


def _validate_spec_decode(
    original: Callable[[SamplingParams, SpeculativeConfig | None], None],
    sampling_params: SamplingParams,
    speculative_config: SpeculativeConfig | None,
) -> None:
    if speculative_config is not None and hasattr(speculative_config, "layerskip"):
        _refuse_bad_options(sampling_params, speculative_config.num_speculative_tokens)
        sampling_params = copy(sampling_params)
        sampling_params.logit_bias, sampling_params.min_p = None, 0.0
    original(sampling_params, speculative_config)


def _refuse_bad_options(sampling_params: SamplingParams, num_speculative_tokens: int) -> None:
    try:
        max_drafts_of(sampling_params.extra_args, num_speculative_tokens)
    except ValueError as error:
        # The server answers this error with HTTP 400.
        raise VLLMValidationError(str(error), parameter="extra_args") from None
