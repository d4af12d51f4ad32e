"""What plain sampling accepts is accepted, and requests with bad options are refused."""

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from layerskip_vllm import plugin


class OurConfig:
    layerskip = object()
    num_speculative_tokens = 4


@pytest.mark.parametrize(
    ("extra_args", "message"),
    [
        ({"layerskip": "no"}, "layerskip='no' must be true or false.*parameter=extra_args"),
        (
            {"num_speculative_tokens": 5},
            r"num_speculative_tokens=5 must be a whole number in \[0, 4\]; leave it out for 4",
        ),
    ],
)
def test_only_self_speculation_checks_a_requests_options(extra_args, message):
    plugin.register()
    sampling_params = SamplingParams(extra_args=extra_args)
    with pytest.raises(VLLMValidationError, match=message):
        sampling_params._validate_spec_decode(OurConfig())
    sampling_params._validate_spec_decode(None)
    SamplingParams(extra_args={"layerskip": False})._validate_spec_decode(OurConfig())


@pytest.mark.parametrize(
    ("params", "config", "refused"),
    [
        ({"logit_bias": {3: 1.0}}, OurConfig(), False),
        ({"logit_bias": {3: 1.0}}, object(), True),
        ({"min_p": 0.5}, OurConfig(), False),
        ({"min_p": 0.5}, object(), True),
        ({"min_p": 0.5, "logit_bias": {3: 1.0}}, OurConfig(), False),
        ({"logprob_token_ids": [1, 2], "logprobs": 2}, OurConfig(), False),
        ({"min_p": 0.5, "logit_bias": {3: 1.0}}, None, False),
    ],
)
def test_only_self_speculation_accepts_what_plain_sampling_does(params, config, refused):
    plugin.register()
    sampling_params = SamplingParams(**params)
    if refused:
        with pytest.raises(VLLMValidationError, match="not yet supported with spec"):
            sampling_params._validate_spec_decode(config)
    else:
        sampling_params._validate_spec_decode(config)
    assert sampling_params == SamplingParams(**params)
