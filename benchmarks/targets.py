"""Devices that only compile: GPUs and TPUs, without having one.

`jax.experimental.topologies` describes devices by a text or a name and hands programs for them to the compilers in
`jax-cuda12-plugin`, `jax-cuda12-pjrt` and `nvidia-cuda-nvcc-cu12`, and in `libtpu`.
"""

import functools
import os
from typing import Any

import jax

from benchmarks import machine

PACKAGES = ("libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
# Which TPUs there are, libtpu would ask the cloud.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
H100 = """gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84978434048
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 8 }
"""
# Topologies by the number of chips.
TPUS = {
    "v5e": {1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4"},
    "v5p": {1: "v5p:2x2x1", 4: "v5p:2x2x1", 8: "v5p:2x2x2"},
}
TARGETS = ("h100", *TPUS)


def missing() -> list[str]:
    """The packages that are needed and not installed."""
    return [name for name in PACKAGES if not machine.version(name)]


def versions() -> dict[str, str]:
    """The versions of everything that decides what is counted."""
    return {name: machine.version(name) for name in ("jax", "jaxlib", *PACKAGES, "optax", "mithril-opt")}


@functools.cache
def devices(target: str, number: int) -> list[Any]:
    """So many devices of a kind. One process at a time can have TPUs."""
    from jax.experimental import topologies

    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    if target == "h100":
        return topologies.get_topology_desc(target, "cuda", topology=f"1x1x{number}", target_config=H100).devices
    return topologies.get_topology_desc(TPUS[target][number], "tpu").devices[:number]


def is_gpu(target: str) -> bool:
    """Whether launching an operation takes microseconds there, so that launches count."""
    return target not in TPUS
