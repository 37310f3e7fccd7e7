"""The method as pure functions: edge losses, constraints, dual state, ledger, certificate."""
