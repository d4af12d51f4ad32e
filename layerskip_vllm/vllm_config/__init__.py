"""Translates `self:E` and early exit into vLLM's configuration."""
