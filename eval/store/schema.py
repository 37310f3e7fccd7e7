"""Columns of the two tables that the evaluation keeps: responses and ratings. One row per planned thing."""

from __future__ import annotations

import pyarrow as pa

STATUSES = ("ok", "unparsed", "truncated", "low_mass", "refused", "engine_error")
LATER = ("thoughts", "thought_tokens", "refused", "transcript", "prompt_hash")
"""Columns that tables of earlier versions lack; they read as null."""

RESPONSES = pa.schema(
    [
        ("response_id", pa.string()),  # hash of model, prompt, sampling and sample
        ("model", pa.string()),
        ("model_hash", pa.string()),
        ("family", pa.string()),
        ("item", pa.string()),  # prompt id
        ("prompt", pa.string()),
        ("sample", pa.int32()),
        ("response", pa.string()),
        ("tokens", pa.int32()),
        ("status", pa.string()),  # ok, truncated (cut at max_tokens), engine_error
        ("error", pa.string()),
        ("refused", pa.bool_()),  # the server marked the response as a refusal
        ("thoughts", pa.string()),  # what the model said before its response, which is no part of that
        ("thought_tokens", pa.int32()),  # of `tokens`, those of thoughts, where the server counts them
        ("transcript", pa.string()),  # of several messages: all of them up to the response, as JSON; else null
    ]
)

RATINGS = pa.schema(
    [
        ("rating_id", pa.string()),  # hash of judge, revision, rubric, prompt, response, sampling, repeat
        ("response_id", pa.string()),
        ("model", pa.string()),
        ("item", pa.string()),
        ("sample", pa.int32()),
        ("dimension", pa.string()),
        ("criterion", pa.string()),
        ("judge", pa.string()),
        ("judge_hash", pa.string()),
        ("rubric_hash", pa.string()),
        ("repeat", pa.int32()),
        ("order", pa.string()),  # "up" or "down": how the scale was listed
        ("mode", pa.string()),  # logprob, structured, import
        ("status", pa.string()),
        ("score", pa.int32()),  # on the rubric's scale; null unless ok
        ("expected", pa.float64()),  # logprob: mean score under the renormalised rating distribution
        ("mass", pa.float64()),  # logprob: probability on the rating tokens
        ("logprobs", pa.list_(pa.float64())),  # logprob: raw log-probability of each score, lowest first
        ("rationale", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("engine", pa.string()),  # e.g. "vllm 0.32.0"
        ("dtype", pa.string()),
        ("batch_invariant", pa.bool_()),
        ("model_family", pa.string()),
        ("judge_family", pa.string()),
        ("response_length", pa.int32()),  # characters
        ("thoughts", pa.string()),  # what the judge said before its answer
        ("thought_tokens", pa.int32()),
        ("prompt_hash", pa.string()),  # hash of what the judge was asked, but for prompt and response
    ]
)
