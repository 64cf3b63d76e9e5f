"""Smoke-size inputs, so that every notebook runs by itself from a fresh kernel in a minute.

They lie in the system's temporary directory and are shared by the notebooks; what is computed
from them is never a result. One file a kind of input, so that a notebook depends on no more code
than it runs.
"""
