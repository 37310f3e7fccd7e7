"""Judging and psychometrics: ratings in, ability estimates out. Never imported by dpeer."""
