"""The order audit: judges rate both sides of a data set's edges, and how often they contradict its order."""
