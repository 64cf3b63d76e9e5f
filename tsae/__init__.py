"""Temporal sparse autoencoders: what is gained when the dictionary knows about time."""

__docformat__ = "restructuredtext"
__version__ = "0.1.0"
