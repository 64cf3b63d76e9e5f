"""What the levels of a hierarchical dictionary are made of."""
