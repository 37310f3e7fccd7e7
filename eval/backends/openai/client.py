"""HTTP to one endpoint. The key comes from the environment and goes nowhere but to the endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpeer.errors import ClusterError, ConfigError
from dpeer.eval.backends.config import Served
from dpeer.eval.backends.openai.faults import Fault
from dpeer.eval.backends.openai.secrets import key_of, without_secrets

if TYPE_CHECKING:
    import httpx

SHOWN = 300
"""Characters of what an endpoint says that an error message shows."""


class Unreachable(Exception):
    """No HTTP reply came; `silent` where the endpoint said nothing in time. Its words hold no secret."""

    def __init__(self, message: str, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


class Client:
    """May be used from many threads."""

    def __init__(self, served: Served, timeout_s: float) -> None:
        import httpx

        self.served, self.key, self.timeout_s = served, key_of(served), timeout_s
        self.base = str(served.base_url).rstrip("/")
        headers = {"Authorization": f"Bearer {self.key or 'none'}"}
        self.http = httpx.Client(headers=headers, timeout=timeout_s, follow_redirects=True)

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """The reply, whatever its status. Raises Unreachable."""
        import httpx

        try:
            return self.http.request(method, self.base + path, **content)
        except httpx.TimeoutException:
            failed = Unreachable(f"timed out after {self.timeout_s:g} s", True)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            failed = Unreachable(self.clean(str(error) or type(error).__name__), False)
        raise failed  # outside, so that no traceback shows what the library says of the request

    def clean(self, text: object) -> str:
        """The beginning of a text, without secrets."""
        return without_secrets(str(text), self.key)[:SHOWN]

    def stopped(self, what: str) -> ClusterError:
        return ClusterError(
            f"{self.served.name}: the endpoint {self.served.base_url} {what}. What was finished is saved: put "
            "it right and run the same command again."
        )

    def refuses(self, fault: Fault) -> ClusterError:
        """The end of a run that no other request would keep alive."""
        if fault.kind == "stranger":
            return self.stopped(
                f"gives no chat completion; base_url usually ends with /v1 (it said: {self.clean(fault.message)})"
            )
        hint = ""
        if fault.kind == "key":
            name = self.served.api_key_env
            hint = f"; the key is read from {name}" if self.key else f"; the environment variable {name} holds no key"
        return self.stopped(f"answers {fault.status or 'with an error'} ({self.clean(fault.message)}){hint}")

    def mute(self) -> ConfigError:
        return ConfigError(
            f"{self.served.name}: the endpoint {self.served.base_url} gives no log-probabilities (top_logprobs). Set "
            "judging.mode=structured (of pairwise: judging.pairwise_read), which reads a JSON answer instead."
        )


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
