"""From the tables of a fit to what a person reads: one page, its pictures, and every table as a file."""
