"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fitkit", "torch", "numpy", "scipy", "numba", "opencv-python", "opencv-python-headless")


def machine() -> dict[str, Any]:
    """Processor, threads and versions, for the JSON of a benchmark."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _processor(),
        "cores": usable,
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def describe(facts: dict[str, Any]) -> str:
    """One line for people."""
    load = "" if facts["load_average"] is None else f", load {facts['load_average']}"
    versions = ", ".join(f"{k} {facts['versions'][k]}" for k in ("torch", "numpy") if k in facts["versions"])
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['torch_threads']} torch threads{load}; {versions}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
