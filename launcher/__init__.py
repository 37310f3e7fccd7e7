"""Everything that knows Ray, processes and the command line."""
