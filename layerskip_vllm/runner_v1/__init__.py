"""Glue between vLLM's model runner V1 and the cycle."""
