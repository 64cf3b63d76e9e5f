"""What the notebooks run: each function takes directories and JSON values and gives tidy tables."""
