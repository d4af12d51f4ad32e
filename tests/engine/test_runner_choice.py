"""`self:E` runs on Model Runner V2 where it is asked for, and on V1 where none is."""

import pytest
from vllm.engine.arg_utils import EngineArgs

SELF = {"spec_model": "self:3"}


def create_engine_config(model: str, **flags):
    return EngineArgs(model, max_model_len=64, **flags).create_engine_config()


@pytest.fixture
def ask_for_v2(monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")


@pytest.fixture
def ask_for_none(monkeypatch):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)


@pytest.mark.on_v2
@pytest.mark.usefixtures("ask_for_none")
def test_v1_runs_where_none_is_asked_for(random_llama):
    """Also where vLLM finds Triton, and would choose V2."""
    config = create_engine_config(random_llama(), **SELF)
    (reason,) = config._get_v2_model_runner_unsupported_features()
    assert reason.startswith("LayerSkip self-speculation")
    assert not config.use_v2_model_runner
    assert config.scheduler_config.async_scheduling is False
    plain = create_engine_config(random_llama())
    assert plain._get_v2_model_runner_unsupported_features() == []


@pytest.mark.runner_v2
@pytest.mark.usefixtures("ask_for_v2")
def test_v2_runs_where_it_is_asked_for(random_llama):
    config = create_engine_config(random_llama(), **SELF)
    assert config.use_v2_model_runner
    assert config._get_v2_model_runner_unsupported_features() == []


@pytest.mark.runner_v1
@pytest.mark.usefixtures("ask_for_v2")
def test_v2_without_triton_is_refused(random_llama):
    with pytest.raises(ValueError, match="Model Runner V2 requires Triton"):
        create_engine_config(random_llama(), **SELF)


@pytest.mark.on_v2
@pytest.mark.usefixtures("ask_for_v2")
def test_lora_on_v2_is_refused(random_llama):
    with pytest.raises(ValueError, match=r"LoRA on model runner V2 .V1 supports it"):
        create_engine_config(random_llama(), **SELF, enable_lora=True)


@pytest.mark.runner_v2
@pytest.mark.usefixtures("ask_for_v2")
def test_asynchronous_scheduling_on_v2_is_accepted(random_llama):
    create_engine_config(random_llama(), **SELF, async_scheduling=True)
