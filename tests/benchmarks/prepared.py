"""A prepared model that no test loads."""

from benchmarks.models import PreparedModel


def model(**changes):
    values = {
        "name": "m",
        "description": "",
        "path": "/m",
        "cut_path": "/cut",
        "dtype": "float32",
        "exit_layer": 2,
        "num_layers": 6,
        "weight_bytes": 1,
        "hidden_size": 8,
        "kv_cache_bytes": 1,
        "max_model_len": 64,
        "prompts": [[1]],
        "max_tokens": 8,
    }
    return PreparedModel(**(values | changes))
