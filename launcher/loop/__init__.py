"""`dpeer loop`: train, judge, estimate abilities, choose the next tolerances, and again."""
