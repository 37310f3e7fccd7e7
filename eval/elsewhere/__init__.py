"""Ratings and labels that were made elsewhere."""
