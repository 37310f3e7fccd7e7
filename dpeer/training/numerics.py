"""What must be equal for a forward pass to repeat to the last digits."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from dpeer.versions import package_version

DRIVER = Path("/proc/driver/nvidia/version")
CUBLAS = ("nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cublas-cu13")


def numerics(device: torch.device) -> list[str]:
    """Device and torch; on a GPU also CUDA, cuBLAS (of torch's wheels) and the driver."""
    if device.type != "cuda":
        return [platform.machine(), torch.__version__]
    cublas = next((found for name in CUBLAS if (found := package_version(name))), "unknown")
    name, cuda = torch.cuda.get_device_name(device), torch.version.cuda
    return [name, torch.__version__, f"CUDA {cuda}", f"cuBLAS {cublas}", f"driver {driver_version()}"]


def driver_version() -> str:
    """As the kernel module tells it, e.g. 550.54.15."""
    try:
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER.read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"
