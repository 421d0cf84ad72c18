"""Threads, device and versions: what a run's speed and its last digits depend on."""

from __future__ import annotations

import platform

import torch

import rnnext

from .errors import require
from .options import MachineOptions


def use(options: MachineOptions) -> torch.device:
    """Set the number of threads for this process and choose the device.

    Raises:
        UserError: `--device cuda` where PyTorch finds none.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    available = torch.cuda.is_available()
    require(
        options.device != "cuda" or available,
        "--device cuda: PyTorch finds no CUDA device here; use --device cpu",
    )
    return torch.device("cuda" if available and options.device != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """What to call the device in a result."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def versions() -> dict[str, str]:
    """The versions of everything that computes."""
    return {
        "rnnext": rnnext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
