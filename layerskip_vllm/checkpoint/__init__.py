"""What a checkpoint's `config.json` knows of early exit; imports no vLLM and no torch."""
