"""Who answers: one file or folder per backend. All speak the protocol of `types` and are found through `registry`."""
