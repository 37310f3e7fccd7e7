"""dpeer: turn a language model into a dignified peer, and prove that it worked."""

__version__ = "0.1.0"
