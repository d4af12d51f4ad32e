"""Propose and verify: what the runner's glue calls."""
