"""`layerskip-vllm doctor`: says whether an installation will serve, before any weight loads."""
