"""`logit_bias` applies to drafts, and requests with bad options are refused."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.worker import gpu_model_runner

from layerskip_vllm import plugin
from layerskip_vllm.compat.worker import logit_bias

VOCAB_SIZE = 7


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.data(),
)
def test_a_bias_is_added_at_every_draft_position_of_its_request(num_drafts, data):
    bias_maps = st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-9, 9, width=16))
    biases = [data.draw(bias_maps) for _ in num_drafts]
    expected = torch.zeros(sum(num_drafts), VOCAB_SIZE)
    row = 0
    for count, bias in zip(num_drafts, biases, strict=True):
        for _ in range(count):
            for token_id, value in bias.items():
                expected[row, token_id] += value
            row += 1

    entries = [(req, t, v) for req, bias in enumerate(biases) for t, v in bias.items()]
    reqs, token_ids, values = zip(*entries, strict=True) if entries else ((), (), ())
    logits = torch.zeros_like(expected)
    logit_bias.add_logit_bias(
        logits,
        torch.tensor(num_drafts),
        torch.tensor(reqs, dtype=torch.int32),
        torch.tensor(token_ids, dtype=torch.int32),
        torch.tensor(values, dtype=torch.float32),
    )
    assert torch.equal(logits, expected)


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


def test_logprob_token_ids_are_refused_under_self_speculation():
    plugin.register()
    sampling_params = SamplingParams(logprob_token_ids=[1, 2], logprobs=2)
    with pytest.raises(VLLMValidationError, match="logprob_token_ids is not supported with self"):
        sampling_params._validate_spec_decode(OurConfig())
    sampling_params._validate_spec_decode(None)


@pytest.mark.parametrize(
    ("params", "config", "refused"),
    [
        ({"logit_bias": {3: 1.0}}, OurConfig(), False),
        ({"logit_bias": {3: 1.0}}, object(), True),
        ({"min_p": 0.5}, OurConfig(), True),
        ({"min_p": 0.5, "logit_bias": {3: 1.0}}, OurConfig(), True),
        ({"min_p": 0.5, "logit_bias": {3: 1.0}}, None, False),
    ],
)
def test_only_self_speculation_accepts_a_logit_bias(params, config, refused):
    plugin.register()
    sampling_params = SamplingParams(**params)
    if refused:
        with pytest.raises(VLLMValidationError, match="not yet supported with spec"):
            sampling_params._validate_spec_decode(config)
    else:
        sampling_params._validate_spec_decode(config)
    assert sampling_params.logit_bias == params.get("logit_bias")


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_self_speculation_keeps_the_biases_of_a_batch(is_ours):
    logit_bias.install()
    config = SimpleNamespace(speculative_config=OurConfig() if is_ours else object())
    config.scheduler_config = SimpleNamespace(max_num_seqs=1)
    processors = gpu_model_runner.build_logitsprocs(config, torch.device("cpu"), False, False)
    names = [type(processor).__name__ for processor in processors.non_argmax_invariant]
    expected = ["MinTokensLogitsProcessor"] + ["LogitBiasLogitsProcessor"] * is_ours
    assert names == expected
