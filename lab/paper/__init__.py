"""What the paper shows: figures, tables and numbers, from the tidy tables alone."""
