"""The two tables of an evaluation, responses and ratings: their columns and their files."""
