"""Measuring models and checking components: bits per byte, baselines, cost, the contract."""
