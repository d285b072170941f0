"""Which process wrote something, and whether it is surely dead. Nothing here looks at the wall clock."""

import hashlib
import os
import re
import secrets
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

import psutil

PROC = Path("/proc")
RANDOM_MAC = 1 << 40  # uuid.getnode sets this bit where it finds no address and draws one
TAG = r"(?P<machine>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<pid>\d{1,10})-(?P<start>\d{1,20})"
TEMPORARY = re.compile(rf"\.(?P<name>.+)\.{TAG}-[0-9a-f]{{8}}")


class Process(NamedTuple):
    """A process, named so that no later one can pass for it.

    machine: identifies the computer and its space of process ids. boot: the machine's run since it was last started. start:
    when the process started, in ticks since the boot on Linux.
    """

    machine: str
    boot: str
    pid: int
    start: int

    @classmethod
    def here(cls) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(machine(), boot(), pid, start_of(pid) or 0)

    @classmethod
    def of_temporary(cls, path: Path) -> tuple[str, Self] | None:
        """What a temporary file or folder is to become, and who writes it; None if the name is no temporary one's."""
        found = TEMPORARY.fullmatch(path.name)
        if found is None:
            return None
        return found["name"], cls(found["machine"], found["boot"], int(found["pid"]), int(found["start"]))

    @property
    def tag(self) -> str:
        return f"{self.machine}-{self.boot}-{self.pid}-{self.start}"

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, so that `dead_here` knows."""
        return self.machine == machine()

    def dead_here(self) -> bool:
        """Whether it ran on this machine and surely runs no longer; False for processes of other machines."""
        if not self.is_here:
            return False
        return self.boot != boot() or start_of(self.pid) != self.start


def temporary_of(place: Path) -> Path:
    """A name beside `place` that is this process's own and says so: `.<name>.<process>-<random>`."""
    return place.with_name(f".{place.name}.{Process.here().tag}-{secrets.token_hex(4)}")


@cache
def machine() -> str:
    """8 hex digits. Machines that might be two have two; the same one under another name counts as another."""
    address = uuid.getnode()
    space = os.readlink(PROC / "self/ns/pid") if (PROC / "self/ns/pid").exists() else ""
    parts = (socket.gethostname(), _text(Path("/etc/machine-id")), space, "" if address & RANDOM_MAC else address)
    return _short(*parts)


@cache
def boot() -> str:
    """8 hex digits that change when the machine is started anew; the same ones for ever where it does not say."""
    return _short(_text(PROC / "sys/kernel/random/boot_id"))


def start_of(pid: int) -> int | None:
    """When a running process started, by a clock that nobody sets; None if there is none, or only its remains."""
    if PROC.joinpath("self/stat").exists():
        fields = _text(PROC / str(pid) / "stat").rpartition(")")[2].split()
        return int(fields[19]) if fields and fields[0] not in "ZX" else None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 100)
    except psutil.Error:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _short(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
