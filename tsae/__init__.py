"""Temporal sparse autoencoders: what is gained when the dictionary knows about time."""

__version__ = "0.1.0"
