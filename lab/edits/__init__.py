"""Edits of the residual stream: a gate says when, a push says what."""
