"""The frozen readers of older checkpoints."""
