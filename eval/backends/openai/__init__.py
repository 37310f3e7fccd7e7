"""OpenAI-compatible endpoints: `replies` reads what they say, `parameters` learns what they take, `endpoint` asks one
request at a time, `batch` in files."""

from dpeer.eval.backends.openai import batch as batch
from dpeer.eval.backends.openai import endpoint as endpoint
