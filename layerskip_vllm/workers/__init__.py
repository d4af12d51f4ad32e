"""vLLM's workers with the model runner of ours that the engine uses."""
