"""Trains checkpoints whose early layers predict (LayerSkip, section 4.1)."""
