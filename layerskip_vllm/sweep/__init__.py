"""`layerskip-vllm sweep`: tokens/s of real vLLM over exits, drafts and draft vocabularies."""
