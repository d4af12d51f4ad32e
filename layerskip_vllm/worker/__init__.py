"""Glue between vLLM's workers and the cycle; nothing else knows a runner's type."""
