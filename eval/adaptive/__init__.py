"""Adaptive judging: which ratings narrow the open contrasts, and when to stop asking. Pure, but for `rounds`."""
