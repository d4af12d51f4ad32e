"""One plain and one self-speculating server for all files that compare the two.

xdist runs these files in one process (tests/conftest.py), so the pair starts once.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.models import byte_tokenizer
from tests.server.answers import SELF, Servers
from tests.server.collector import collect
from tests.server.servers import serve

FLAGS = (
    # JSON allows unlimited whitespace between its parts, which a random model generates.
    "--structured-outputs-config",
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
    # This parser expects thoughts only in chats that request them.
    *("--reasoning-parser", "deepseek_v3"),
    *("--reasoning-config", '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}'),
    *("--enable-auto-tool-choice", "--tool-call-parser", "pythonic"),
)
TRACING = {
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    "OTEL_BSP_SCHEDULE_DELAY": "200",  # ms
    "VLLM_LOG_STATS_INTERVAL": "1",  # s
}


@pytest.fixture(scope="package")
def thinking_model(random_llama, tmp_path_factory):
    """A checkpoint whose tokenizer has tokens for thoughts; `thinking` chats begin with one."""
    directory = tmp_path_factory.mktemp("thinking")
    shutil.copytree(random_llama(num_layers=6, late_scale=0.3), directory, dirs_exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template += "{% if thinking %}<think>{% endif %}"
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="package")
def servers(thinking_model):
    with ExitStack() as stack:
        collector = stack.enter_context(collect())
        starting = [
            serve(
                thinking_model,
                *FLAGS,
                *("--otlp-traces-endpoint", collector.endpoint(path)),
                *speculation,
                **TRACING,
            )
            for path, speculation in (("plain", ()), ("self", SELF))
        ]
        with ThreadPoolExecutor() as executor:
            running = list(executor.map(stack.enter_context, starting))
        yield Servers(*running, collector)
