"""Ratings, answers and labels that were made elsewhere."""

from dpeer.eval.elsewhere.importer import import_ratings, ratings_from

__all__ = ["import_ratings", "ratings_from"]
