"""A world of known latent variables, and a small transformer trained on its text."""
