"""Hooks for the workers of an engine with `self:E`."""
