"""Batch inference over a JSONL file with Ray Data LLM and self-speculation.

    python examples/ray/data_llm.py MODEL E prompts.jsonl completions.jsonl

Ray Data reads, batches and retries; its engines are vLLM with self-speculation. With GPUs, delete
`placement_group_config`. Ray 2.60 requires vLLM 0.29; this script ran with vLLM 0.32 on CPU.
"""

import argparse
import json
from pathlib import Path

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Batch inference with Ray Data LLM.")
    parser.add_argument("model")
    parser.add_argument("exit_layer", type=int)
    parser.add_argument("prompts")
    parser.add_argument("completions", type=Path)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--enforce-eager", action="store_true", help="start sooner, decode slower")
    args = parser.parse_args()

    config = vLLMEngineProcessorConfig(
        model_source=args.model,
        engine_kwargs={
            "spec_model": f"self:{args.exit_layer}",
            "max_model_len": -1,  # as long as the KV cache allows
            "enforce_eager": args.enforce_eager,
        },
        placement_group_config={"bundles": [{"CPU": 1}]},
        concurrency=1,
        batch_size=16,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "prompt": row["prompt"],
            "sampling_params": {"temperature": 0, "max_tokens": args.max_tokens},
        },
        postprocess=lambda row: {"prompt": row["prompt"], "completion": row["generated_text"]},
    )
    with args.completions.open("w") as file:
        for row in processor(ray.data.read_json(args.prompts)).iter_rows():
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
