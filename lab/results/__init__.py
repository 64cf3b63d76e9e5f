"""Tidy rows: how they are made, read and compared."""
