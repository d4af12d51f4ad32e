"""Random `self:E` settings give an engine configuration or an error that names them."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from vllm.engine.arg_utils import EngineArgs

from tests.fuzz import JSON, SCALARS, is_accepted

NUM_LAYERS = 6


def mostly(good, bad=JSON):
    """Mostly good values: with only random ones, the first one would end every example."""
    return st.one_of(good, good, bad)


SPECULATIVE_CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "num_speculative_tokens": mostly(st.integers(1, 8)),
        "draft_sample_method": mostly(st.sampled_from(["greedy", "probabilistic"])),
        "use_local_argmax_reduction": mostly(st.booleans()),
        "num_speculative_tokens_per_batch_size": mostly(
            st.just([[1, 4, 2], [5, 8, 0]]), st.lists(st.lists(SCALARS, max_size=4), max_size=3)
        ),
        "method": JSON,
    },
)
LAYERSKIP = st.fixed_dictionaries(
    {},
    optional={
        "exit_query_cache": mostly(st.booleans()),
        "adaptive": mostly(st.booleans()),
        "draft_vocab_size": mostly(st.none()),
        "draft_vocab_counts": mostly(st.none()),
        "early_exit": JSON,
        "exit_layers": mostly(
            st.lists(st.integers(0, NUM_LAYERS), max_size=4), st.lists(SCALARS, max_size=4)
        ),
        "unknown": JSON,
    },
)


@settings(suppress_health_check=list(HealthCheck))
@given(
    model=mostly(st.integers(0, NUM_LAYERS).map(str) | st.just("auto"), st.text(max_size=8)),
    spec_tokens=mostly(st.none(), SCALARS),
    speculative_config=st.none() | SPECULATIVE_CONFIG,
    layerskip=mostly(LAYERSKIP),
)
def test_settings_give_a_configuration_or_a_value_error(
    random_llama, model, spec_tokens, speculative_config, layerskip
):
    args = EngineArgs(
        random_llama(num_layers=NUM_LAYERS),
        max_model_len=64,
        spec_model=f"self:{model}",
        spec_tokens=spec_tokens,
        speculative_config=speculative_config,
        additional_config={"layerskip": layerskip},
    )

    def configure():
        config = args.create_engine_config().speculative_config
        assert 1 <= config.layerskip.exit_layer < NUM_LAYERS
        assert config.layerskip.exit_layer in config.layerskip.exit_layers
        assert 1 <= config.num_speculative_tokens <= 128

    is_accepted(configure)
