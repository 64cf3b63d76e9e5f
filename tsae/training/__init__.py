"""Training: one trainer for every variant, with schedules, resampling and exact resume."""
