"""Is a preference data set what it says it is: verified records, order, surface, near repeats."""
