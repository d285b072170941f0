"""Locks on a folder that many machines share, which no dead process holds for ever, whatever clocks say.

A lease is a file that one process creates whole and exclusively (a link, which NFS has too; no flock). It never changes;
its holder beats in a file of its own beside it, so that a beat can never overwrite another's lease. A holder is dead if its
process is gone from this machine, or if its beats stand still for long on the clock of who watches. Only who has created
the file that is named by a lease's token may remove the lease, so that one of several succeeds and a newer one is safe.
"""

import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from husai.errors import HusaiError
from husai.store.files import crash_point, reason
from husai.store.processes import Process, temporary_of

BEAT_EVERY, STALE_AFTER = 2.0, 60.0  # seconds
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # file systems without hard links
TOKEN = re.compile("[0-9a-f]{32}")
TRIES = 3


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, for what, and how far it is. process: None for a file that cannot be read, whose token says what
    it holds."""

    token: str
    process: Process | None = None
    host: str = "an unknown machine"
    about: str = ""
    beat: int = 0
    progress: dict[str, Any] = field(default_factory=dict)

    def dead_here(self) -> bool:
        """Whether the holder was a process of this machine and surely runs no longer."""
        return self.process is not None and self.process.dead_here()

    def __str__(self) -> str:
        if self.process is None:
            return "a file that cannot be read"
        return f"process {self.process.pid} on {self.host}" + (f" ({self.about})" if self.about else "")


def read_holder(path: Path) -> Holder | None:
    """Who holds the lease at `path`, with its last beat; None if nobody. Raises HusaiError if the file cannot be opened."""
    data = _bytes(path)
    if data is None:
        return None
    try:
        known = json.loads(data)
        process = Process(str(known["machine"]), str(known["boot"]), int(known["pid"]), int(known["start"]))
        holder = Holder(known["token"], process, str(known["host"]), str(known["about"]))
        if not TOKEN.fullmatch(holder.token):
            raise ValueError(holder.token)
    except (ValueError, TypeError, KeyError, RecursionError):
        return Holder(sha256(data).hexdigest()[:32])
    try:
        last = json.loads(_bytes(_beat_file(path, holder.token)) or b"{}")
        beat, progress = int(last.get("beat", 0)), dict(last.get("progress", {}))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return holder
    return Holder(holder.token, process, holder.host, holder.about, beat, progress)


def _bytes(path: Path) -> bytes | None:
    """A small file that others replace meanwhile; None if there is none."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno != errno.ESTALE or not left:  # NFS: replaced while it was open
                raise HusaiError(f"{path}: cannot be read ({reason(error)})") from None
    return None


def _beat_file(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name}.{token}.beat")


def end_file(path: Path, token: str) -> Path:
    """The file whose creator alone may remove the lease of this token."""
    return path.with_name(f".{path.name}.{token}.end")


class Watch:
    """What one observer saw of leases, and when on its own clock."""

    def __init__(self, stale_after: float = STALE_AFTER) -> None:
        self.stale_after = stale_after
        self.seen: dict[Path, tuple[str, int, float]] = {}

    def stale(self, path: Path) -> bool:
        """Whether the holder is dead: gone from this machine, or, wherever it is, without a beat for `stale_after` seconds
        of watching. False if nobody holds it. Raises HusaiError as `read_holder`."""
        holder, now = read_holder(path), time.monotonic()
        if holder is None:
            self.seen.pop(path, None)
            return False
        if holder.dead_here():
            return True
        token, beat, since = self.seen.get(path, ("", 0, now))
        if (token, beat) != (holder.token, holder.beat):
            self.seen[path] = holder.token, holder.beat, now
            return False
        return now - since >= self.stale_after


class Lease:
    """A lock that this process holds, and beats for in a thread until it is released. Made by `Lease.take` and `hold`."""

    def __init__(self, path: Path, about: str, beat_every: float) -> None:
        self.path, self.about, self.beat_every, self.token = path, about, beat_every, secrets.token_hex(16)
        self.progress: dict[str, Any] = {}
        self._pid, self._beat, self._gone, self._confirmed = os.getpid(), 0, False, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beats, name=f"lease {path.name}", daemon=True)

    @classmethod
    def take(
        cls, path: Path, *, about: str, beat_every: float = BEAT_EVERY, watch: Watch | None = None
    ) -> "Lease | None":
        """One try to hold `path`; None if someone living does. watch: which holders count as dead beside those of this machine
        that surely are. about: what for, in words. Raises HusaiError if the folder cannot be written.
        """
        lease = cls(path, about, beat_every)
        for _ in range(2):
            if _create(path, lease.token, about):
                lease._thread.start()
                return lease
            holder = read_holder(path)
            if holder is None:
                continue
            dead = holder.dead_here() or (watch is not None and watch.stale(path))
            if not (dead and break_dead(path, holder.token)):
                return None
        return None

    def say(self, **progress: Any) -> None:
        """Figures (step, of, loss, …) for whoever looks; the next beat writes them."""
        self.progress = {**self.progress, **progress}

    @property
    def lost(self) -> bool:
        """Whether another process has it by now, as after this one was stopped for long; true in a fork of the holder."""
        if not self._gone and time.monotonic() - self._confirmed > 2 * self.beat_every:
            self._confirm()
        return self._gone or os.getpid() != self._pid

    def release(self) -> None:
        """Let others have it. Removes nothing of theirs if it was lost."""
        if os.getpid() != self._pid or self._over.is_set():
            return
        self._over.set()
        try:
            if self._thread.ident is not None:
                self._thread.join()
        finally:  # a signal's exception may come while it waits
            with suppress(HusaiError):  # it stays, and counts as dead once this process is gone
                break_dead(self.path, self.token)
            _unlink(_beat_file(self.path, self.token))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.release()

    def _beats(self) -> None:
        while not self._over.wait(self.beat_every) and self._confirm():
            self._beat += 1
            with suppress(OSError, HusaiError):  # a full disk: who watches may think it dead, and it then notices
                _replace(_beat_file(self.path, self.token), {"beat": self._beat, "progress": self.progress})

    def _confirm(self) -> bool:
        """Look whether the lease is still this one's; what cannot be read now leaves things as they are."""
        with suppress(HusaiError):
            now, holder = time.monotonic(), read_holder(self.path)
            self._gone = self._gone or holder is None or holder.token != self.token
            self._confirmed = now
        return not self._gone


def break_dead(path: Path, token: str) -> bool:
    """Take away the lease of a holder that is dead; of several processes that try, one gets True.

    A lease of another token stays. Raises HusaiError if the folder cannot be written.
    """
    end = end_file(path, token)
    if not _create(end, secrets.token_hex(16), f"ends {token}"):
        ender = read_holder(end)
        if ender is not None and _ENDS.stale(end):
            _take_away(end, ender.token)
        return False
    try:
        crash_point("lease-ending")
        holder = read_holder(path)
        if holder is None or holder.token != token:
            return False
        path.unlink()
        crash_point("lease-ended")
        _unlink(_beat_file(path, token))
        return True
    except OSError as error:
        raise HusaiError(f"{path}: cannot be removed ({reason(error)})") from None
    finally:
        _unlink(end)


_ENDS = Watch()


def _take_away(end: Path, token: str) -> None:
    """Remove what a process left that was killed while it removed a lease; another's, created meanwhile, is put back."""
    mine = temporary_of(end)
    with suppress(OSError):
        end.rename(mine)
        found = read_holder(mine)
        if found is not None and found.token != token:
            os.link(mine, end)
    _unlink(mine)


def _create(path: Path, token: str, about: str) -> bool:
    """Create a lease's file with its whole content, or leave what is there."""
    process = Process.here()
    content = {"token": token, "host": socket.gethostname(), **process._asdict(), "about": about}
    text, temporary = json.dumps(content) + "\n", temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        crash_point("lease-written")
        created = _link(temporary, path, text)
    except OSError as error:
        raise HusaiError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        _unlink(temporary)
    if created:
        crash_point("lease-taken")
    return created


def _link(temporary: Path, path: Path, text: str) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # NFS: the link was made, and its answer lost
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    return True


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Without a flush to disk: after a power cut nobody holds anything."""
    temporary = temporary_of(path)
    try:
        temporary.write_text(json.dumps(content, default=str), encoding="utf-8")
        crash_point("lease-beaten")
        temporary.replace(path)
    finally:
        _unlink(temporary)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


@contextmanager
def hold(path: Path, *, about: str, wait: float = 600.0, stale_after: float = STALE_AFTER) -> Iterator[Lease]:
    """Hold `path` for the block, after at most `wait` seconds. Raises HusaiError naming the holder if it takes longer."""
    watch, start, pause = Watch(stale_after), time.monotonic(), 0.005
    while (lease := Lease.take(path, about=about, watch=watch)) is None:
        if time.monotonic() - start >= wait:
            raise HusaiError(
                f"{path}: is held by {read_holder(path) or 'another process'} for more than {wait:g} s; "
                "wait for it, or end that process"
            )
        time.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
        pause = min(1.5 * pause, 0.5)
    with lease:
        yield lease
