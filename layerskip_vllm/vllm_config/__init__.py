"""`self:E` and early exit as configuration of vLLM."""
