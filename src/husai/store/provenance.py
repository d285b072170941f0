"""What a number rests on: versions, code, commit, hardware and time."""

import hashlib
import json
import os
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import husai
from husai.config import Config
from husai.resources import in_checkout

PACKAGES = ("husai", "torch", "numpy", "scipy", "sae-lens", "transformer-lens")


def provenance(**extra: object) -> dict[str, object]:
    """Versions, commit, hardware and time; what never enters results but explains them."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "code": CODE,
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **extra,
    }


def write_record(folder: Path, config: Config, metrics: dict[str, Any], **extra: object) -> None:
    """`config.yaml`, `metrics.json` and `provenance.json` of a run."""
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    finite = {name: None if value != value else value for name, value in metrics.items()}  # JSON knows no NaN
    (folder / "metrics.json").write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(provenance(**extra), indent=2) + "\n", encoding="utf-8")


def code_hash(*names: str) -> str:
    """sha256 of modules and folders of modules of this package (`analysis`, `seeding.py`), and of torch's version."""
    root, digest = Path(husai.__file__).parent, hashlib.sha256(torch.__version__.encode())
    for name in names:
        for path in sorted((root / name).glob("*.py")) if (root / name).is_dir() else [root / name]:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _package_code() -> str:
    """12 hex digits of all code of the package."""
    root = Path(husai.__file__).parent
    return code_hash(*sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")))[:12]


CODE = _package_code()  # as imported, whatever becomes of the files while a sweep runs


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed package, whatever holds its folder."""
    if not in_checkout():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(husai.__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
