"""Which latent follows which."""
