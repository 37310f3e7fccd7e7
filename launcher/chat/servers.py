"""A vLLM server on this machine for each local model, for as long as somebody talks; endpoints stay where they are."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from dpeer.errors import ClusterError
from dpeer.eval.backends.config import Engine, Served
from dpeer.eval.backends.types import Job, Method
from dpeer.launcher.nvidia import gpus

KEY = "DPEER_CHAT_KEY"
"""Environment variable with the key of these servers, which are for this process alone."""
HOST = "127.0.0.1"
READY_S = 900.0
AT_ONCE = 8
"""Sequences that a server works on: people type."""
TAIL = 2000
BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: the server ends with its parent
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@contextmanager
def serving(models: Sequence[Served], settings: Engine, say: Callable[[str], None]) -> Iterator[list[Served]]:
    """The models as endpoints that answer. Raises ClusterError with a server's last words where it does not start."""
    local = [model for model in models if model.backend == "vllm"]
    os.environ.setdefault(KEY, secrets.token_urlsafe(24))
    with TemporaryDirectory(prefix="dpeer-chat-") as folder, ExitStack() as stack:
        begun = {}
        places = _places(settings, len(local), len(gpus()))
        for model, (own, devices) in zip(local, places, strict=True):  # all are started before any is waited for
            log = Path(folder) / f"{model.name}.log"
            begun[model.name] = stack.enter_context(_server(model, own, devices, log)), log
            say(f"{model.name}: starting vLLM for {model.path} ...")
        for model in local:
            (process, port), log = begun[model.name]
            _wait(model, process, port, log)
        yield [
            model
            if model.name not in begun
            else Served(
                name=model.name,
                path=model.name,
                backend="openai",
                base_url=f"http://{HOST}:{begun[model.name][0][1]}/v1",
                api_key_env=KEY,
            )
            for model in models
        ]


def _places(settings: Engine, servers: int, cards: int) -> list[tuple[Engine, str | None]]:
    """Settings and visible GPUs of each server: GPUs of its own where there are enough, else a part of the memory."""
    own = settings.model_copy(update={"max_num_seqs": min(AT_ONCE, settings.max_num_seqs)})
    each = settings.tensor_parallel
    if cards >= servers * each:
        return [(own, ",".join(str(k * each + i) for i in range(each))) for k in range(servers)]
    part = own.model_copy(update={"gpu_memory": own.gpu_memory / max(1, servers)})
    return [(part, None)] * servers


@contextmanager
def _server(
    model: Served, settings: Engine, devices: str | None, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    from dpeer.eval.backends.vllm.engine import choose_device, environment

    job = Job(model, settings, Method("sample"), choose_device(settings, len(gpus())))
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    visible = {"CUDA_VISIBLE_DEVICES": devices} if devices and job.device == "gpu" else {}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(os.getpid()), *command(job, port)],
            env=os.environ | environment(job) | {"VLLM_API_KEY": os.environ[KEY]} | visible,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, port
    finally:
        _end(process)


def command(job: Job, port: int) -> list[str]:
    """Arguments of Python that start the server, with the engine's settings as everywhere else in dpeer."""
    from dpeer.eval.backends.vllm.engine import engine_kwargs

    values = engine_kwargs(job)
    flags = {
        "enforce-eager": values["enforce_eager"],
        "enable-lora": bool(values.get("enable_lora")),
        "no-enable-chunked-prefill": values.get("enable_chunked_prefill") is False,
    }
    named = {
        "model": values["model"],
        "revision": values["revision"],
        "tokenizer-revision": values["tokenizer_revision"],
        "served-model-name": f"{job.served.name}-without-adapter" if job.served.adapter else job.served.name,
        "dtype": values["dtype"],
        "max-model-len": values["max_model_len"],
        "max-num-seqs": values["max_num_seqs"],
        "max-num-batched-tokens": values.get("max_num_batched_tokens"),
        "block-size": values.get("block_size"),
        "tensor-parallel-size": values.get("tensor_parallel_size"),
        "gpu-memory-utilization": values.get("gpu_memory_utilization"),
        "distributed-executor-backend": values["distributed_executor_backend"],
        "max-lora-rank": values.get("max_lora_rank"),
        "lora-modules": f"{job.served.name}={job.served.adapter}" if job.served.adapter else None,
        "host": HOST,
        "port": port,
    }
    words = ["-m", "vllm.entrypoints.openai.api_server", *(f"--{name}" for name, on in flags.items() if on)]
    return words + [text for name, v in named.items() if v is not None for text in (f"--{name}", str(v))]


def _wait(model: Served, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://{HOST}:{port}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    state = f"ended with {process.poll()}" if process.poll() is not None else f"was not ready in {READY_S:.0f} s"
    said = log.read_text(errors="replace")[-TAIL:].strip()
    raise ClusterError(f"{model.name}: vLLM for {model.path} {state}. Its last words:\n{said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The server and the processes of its engine, which share its session."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
