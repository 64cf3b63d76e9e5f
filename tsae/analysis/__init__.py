"""What latents do over time and to each other: lifecycle, transitions, dependencies."""
