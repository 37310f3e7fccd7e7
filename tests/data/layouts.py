"""Small files in the layouts that preference data are published in; every text is made up."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: Rows) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def zst(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(content)
    return bytes(stream.getvalue())


def gz(content: bytes) -> bytes:
    return gzip.compress(content)


def write(folder: Path, files: Mapping[str, bytes | Rows]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_bytes(parquet(content) if name.endswith(".parquet") else jsonl(content))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def ultrafeedback(instruction: str, *completions: tuple[str, str]) -> dict[str, Any]:
    """Completions with four digits: instruction following, honesty, truthfulness, helpfulness; "-" is N/A."""
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    made = [
        {
            "model": f"m{k}",
            "response": text,
            "overall_score": 7.5,
            "annotations": {
                name: {"Rating": "N/A" if digit == "-" else digit, "Rationale": "because"}
                for name, digit in zip(names, digits, strict=True)
            },
        }
        for k, (text, digits) in enumerate(completions)
    ]
    return {"source": "made_up", "instruction": instruction, "models": ["m0", "m1"], "completions": made}


def helpsteer2(prompt: str, response: str, digits: str) -> dict[str, Any]:
    """Five digits: helpfulness, correctness, coherence, complexity, verbosity."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response} | dict(zip(names, map(int, digits), strict=True))


def helpsteer3(context: Any, one: str, two: str, preference: int, domain: str = "general") -> dict[str, Any]:
    individual = [{"score": preference, "reasoning": "r", "feedback1": "f", "feedback2": "f"}]
    return {
        "domain": domain,
        "language": "english",
        "context": context,
        "response1": one,
        "response2": two,
        "overall_preference": preference,
        "individual_preference": individual,
    }


def saferlhf(prompt: str, zero: str, one: str, better: int, safer: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "response_0": zero,
        "response_1": one,
        "prompt_source": "made_up",
        "is_response_0_safe": safer == 0,
        "is_response_1_safe": safer == 1,
        "response_0_harm_category": {"Privacy Violation": safer == 1},
        "better_response_id": better,
        "safer_response_id": safer,
    }
