"""The other half of LayerSkip: training early layers to predict (section 4.1)."""
