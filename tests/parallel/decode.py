"""Decode a job of jobs.py in a separate process and print the result as one JSON object.

python tests/parallel/decode.py < job.json
"""

from __future__ import annotations

import json
import os
import sys


def decode(arguments: dict, prompts: list[list[int]], max_tokens: int) -> dict:
    """Greedy token ids of each prompt, and the number of accepted drafts."""
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments, disable_log_stats=False)
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True),
        use_tqdm=False,
    )
    accepted = "vllm:spec_decode_num_accepted_tokens"
    return {
        "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        "num_accepted": next(m.value for m in llm.get_metrics() if m.name == accepted),
    }


def decode_in_a_task(*arguments) -> dict:
    """Decode in a Ray task that only knows its cluster from Ray itself."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    result = decode(*arguments)
    # The engine's process inherits it; without it, the engine would start its own Ray.
    assert os.environ["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address
    return result


def main() -> None:
    job = json.load(sys.stdin)
    arguments = (job["arguments"], job["prompts"], job["max_tokens"])
    if job["inside_a_task"]:
        import ray

        ray.init(log_to_driver=False)
        result = ray.get(ray.remote(decode_in_a_task).options(num_cpus=0).remote(*arguments))
    else:
        result = decode(*arguments)
    print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
