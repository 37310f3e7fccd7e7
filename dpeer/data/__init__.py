"""Records, their partial order, tokens and packs."""
