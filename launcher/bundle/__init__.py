"""`dpeer bundle` and `dpeer verify`: what was published, in one place, and what can be computed again from it."""
