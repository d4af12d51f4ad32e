"""Batch inference over a JSONL file on a Ray cluster, tensor parallel, with self-speculation.

    RAY_ADDRESS=HEAD:6379 python examples/ray/batch.py MODEL E prompts.jsonl completions.jsonl

Each line of the input is an object with a `prompt`; the output adds a `completion`. MODEL is a path
that exists on every node, or a name on a model hub.
"""

import argparse
import json
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description="Batch inference on a Ray cluster.")
    parser.add_argument("model")
    parser.add_argument("exit_layer", type=int)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("completions", type=Path)
    parser.add_argument("--tensor-parallel-size", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--enforce-eager", action="store_true", help="start sooner, decode slower")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.prompts.read_text().splitlines() if line]

    llm = LLM(
        args.model,
        spec_model=f"self:{args.exit_layer}",
        tensor_parallel_size=args.tensor_parallel_size,
        distributed_executor_backend="ray",
        max_model_len=-1,  # as long as the KV cache allows
        enforce_eager=args.enforce_eager,
    )
    sampling = SamplingParams(temperature=0, max_tokens=args.max_tokens)
    outputs = llm.generate([line["prompt"] for line in lines], sampling)
    with args.completions.open("w") as file:
        for line, output in zip(lines, outputs, strict=True):
            file.write(json.dumps(line | {"completion": output.outputs[0].text}) + "\n")


if __name__ == "__main__":
    main()
