"""Language models over response trees: attention, log-probabilities, loading."""
