"""What `--env` logs: what this server runs on, in one line, for whoever reads a report of a problem.

In: the number of GPUs. Out: the line. Imports nothing that it names: torch alone would take seconds.
"""

import importlib.metadata
import platform

DISTRIBUTIONS = ("text-generation-inference", "torch", "transformers")


def runtime_report(num_gpus: int) -> str:
    versions = " ".join(f"{name}={_version(name)}" for name in DISTRIBUTIONS)
    return f"runtime python={platform.python_version()} platform={platform.platform()} {versions} num_gpus={num_gpus}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"
