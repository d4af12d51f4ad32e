"""An OpenAI-compatible service with Ray Serve LLM: python examples/ray/serve_llm.py MODEL E

Ray Serve scales, routes and restarts; each replica is vLLM with self-speculation. With GPUs, delete
`accelerator_config`. Ray 2.60 requires vLLM 0.29; this script ran with vLLM 0.32 on CPU, on a
cluster of 8 logical CPUs.
"""

import argparse

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve with Ray Serve LLM.")
    parser.add_argument("model")
    parser.add_argument("exit_layer", type=int)
    parser.add_argument("--enforce-eager", action="store_true", help="start sooner, decode slower")
    args = parser.parse_args()

    config = LLMConfig(
        model_loading_config={"model_id": "layerskip", "model_source": args.model},
        accelerator_config={"kind": "cpu"},
        engine_kwargs={
            "spec_model": f"self:{args.exit_layer}",
            "max_model_len": -1,  # as long as the KV cache allows
            "enforce_eager": args.enforce_eager,
        },
        deployment_config={"num_replicas": 1},
    )
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)


if __name__ == "__main__":
    main()
