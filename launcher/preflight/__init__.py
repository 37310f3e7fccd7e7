"""`dpeer preflight`: what would stop a run, found before it starts. The quick part opens every run on a cluster."""
