"""Whether a known variable is readable from one latent."""
