"""How codes move from one token to the next."""
