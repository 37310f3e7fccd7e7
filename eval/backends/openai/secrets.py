"""What must never be printed or stored: keys, and names with passwords in addresses."""

from __future__ import annotations

import base64
import json
import os
import re
from urllib.parse import quote

from dpeer.errors import ConfigError
from dpeer.eval.backends.config import Served

SECRET_FROM = 8
"""Characters from which a key is a secret: local servers are given stand-ins such as `none`, which are words too."""
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"'<>]+@")


def key_of(served: Served) -> str:
    """The key in the environment; ConfigError for one that holds what no key has."""
    key = (os.environ.get(served.api_key_env) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{served.name}: the environment variable {served.api_key_env} holds characters that no key has "
            "(a line break, or a letter beyond ASCII). Copy the key again."
        )
    return key


def without_secrets(text: str, key: str) -> str:
    """The text with <key> in place of the key, also where that is quoted for JSON or an address, or in base64, and
    without user and password in addresses (such as a proxy's)."""
    if "://" in text:
        text = _IN_ADDRESS.sub("<credentials>@", text)
    if len(key) < SECRET_FROM:
        return text
    encoded = [base64.b64encode(form.encode()).decode().rstrip("=") for form in (key, f":{key}")]
    for form in sorted({key, json.dumps(key)[1:-1], quote(key), quote(key, safe=""), *encoded}, key=len, reverse=True):
        text = text.replace(form, "<key>")
    return text
