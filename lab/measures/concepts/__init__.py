"""What codes tell about units of text, and what their latents do."""
