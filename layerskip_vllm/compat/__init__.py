"""Hooks on vLLM, and repairs of it."""
