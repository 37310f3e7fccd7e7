"""The demo's world with known truth: records, the text of its answers, and a tiny language model."""
