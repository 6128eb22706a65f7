"""What the numbers were measured on and with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import jax

# What compiles for accelerators and drives them.
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")


def describe() -> dict[str, str]:
    """Device, driver if there is one, versions, and how busy the machine was."""
    found = {
        "device": device(),
        "driver": driver(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        **{name: version(name) for name in ("jax", "jaxlib", *PLUGINS, "optax", "torch", "mithril-opt")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "load before": load(),
    }
    return {name: value for name, value in found.items() if value}


def load() -> str:
    """How many processes wanted to run in the last minute; empty where the system does not say."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def device() -> str:
    """The accelerator's name, or the processor's."""
    first = jax.devices()[0]
    if first.platform == "cpu":
        return f"{processor()}, {os.cpu_count()} cores"
    return f"{len(jax.devices())} × {first.device_kind}"


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver() -> str:
    """The version of the NVIDIA driver; empty without one."""
    if jax.default_backend() != "gpu" or not (command := shutil.which("nvidia-smi")):
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else ""


def version(package: str) -> str:
    """The installed version of `package`; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
