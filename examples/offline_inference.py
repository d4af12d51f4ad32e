"""Batch inference with self-speculation: the first E layers draft, the others verify.

    python examples/offline_inference.py [MODEL] [E]

Without arguments it uses SmolLM2-135M-Instruct. That model was not trained for early exit, so it
shows correctness, not speed. With a LayerSkip checkpoint:

    python examples/offline_inference.py facebook/layerskip-llama3.2-1B 4
    python examples/offline_inference.py examples/checkpoints/layerskip-python-10m 4
"""

import sys

from vllm import LLM, SamplingParams

from layerskip_vllm.demo import smollm2

PROMPTS = ["def fibonacci(n):", "The capital of France is", "1, 2, 3, 4,"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(smollm2.prepare())
    exit_layer = sys.argv[2] if len(sys.argv) > 2 else "20"
    llm = LLM(
        model,
        speculative_config={"model": f"self:{exit_layer}", "num_speculative_tokens": 4},
        max_model_len=256,
        enforce_eager=True,
        kv_cache_memory_bytes=256 << 20,
        disable_log_stats=False,
    )
    for output in llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=48)):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")

    metrics = {metric.name: metric for metric in llm.get_metrics()}
    drafts = metrics["vllm:spec_decode_num_drafts"].value
    drafted = metrics["vllm:spec_decode_num_draft_tokens"].value
    accepted = metrics["vllm:spec_decode_num_accepted_tokens"].value
    print(f"acceptance rate {accepted / drafted:.1%}, mean length {1 + accepted / drafts:.2f}")


if __name__ == "__main__":
    main()
