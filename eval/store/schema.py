"""Columns of the two tables that the evaluation keeps: responses and ratings. One row per planned thing."""

from __future__ import annotations

import pyarrow as pa

STATUSES = ("ok", "unparsed", "truncated", "low_mass", "refused", "engine_error")
OTHERS = ("other_model", "other_response_id", "other_sample", "other_model_family", "other_response_length")
"""Of the response that a pairwise row compares with that of `model`; null in a rating."""
OUTCOMES = (-1, 0, 1)
"""Scores of a pairwise row: the other response is better, a tie, this one is better."""
PLACES = ("first", "second")
"""Where the response of `model` stood in a pairwise row."""
LATER = ("thoughts", "thought_tokens", "refused", "transcript", "prompt_hash", "eager", *OTHERS)
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
        ("order", pa.string()),  # "up" or "down": how the scale was listed; pairwise: where this response stood, PLACES
        ("mode", pa.string()),  # logprob, structured, pairwise, import
        ("status", pa.string()),
        ("score", pa.int32()),  # on the rubric's scale, pairwise one of OUTCOMES; null unless ok
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
        ("eager", pa.bool_()),  # vLLM without compiled code; null where none answered
        ("model_family", pa.string()),
        ("judge_family", pa.string()),
        ("response_length", pa.int32()),  # characters
        ("thoughts", pa.string()),  # what the judge said before its answer
        ("thought_tokens", pa.int32()),
        ("prompt_hash", pa.string()),  # hash of what the judge was asked, but for prompt and response
        ("other_model", pa.string()),  # pairwise: whose response stood beside it
        ("other_response_id", pa.string()),
        ("other_sample", pa.int32()),
        ("other_model_family", pa.string()),
        ("other_response_length", pa.int32()),  # characters
    ]
)
