"""Psychometrics: from ratings to abilities by a many-facet item response model."""
