"""Decodes in a process of its own and prints one JSON object; jobs.py says what.

python tests/parallel/decode.py < job.json
"""

from __future__ import annotations

import json
import os
import sys


def decode(arguments: dict, prompts: list[list[int]], max_tokens: int) -> dict:
    """Greedy token ids of each prompt, and how many drafts were accepted."""
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
    """The same, where nothing but Ray itself says which cluster the task is part of."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    result = decode(*arguments)
    # What the engine's process inherited; without it, it starts a Ray of its own and works too.
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
