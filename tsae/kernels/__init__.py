"""Fast paths, each beside the plain torch reference that a test holds it equal to."""
