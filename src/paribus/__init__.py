"""Paribus: pretraining experiments that change one thing and hold all else equal."""

__version__ = "0.1.0"
