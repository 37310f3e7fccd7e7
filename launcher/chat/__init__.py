"""Talking to models: in the terminal, and side by side in a local page where people vote."""
