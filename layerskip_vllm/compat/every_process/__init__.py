"""Hooks for every process in which vLLM loads plugins. Importing them must stay cheap."""
