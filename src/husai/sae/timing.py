"""Where the time of a training step goes."""

import time

import torch

PARTS: tuple[str, ...] = ("data", "gradients", "update", "logging")


class Clock:
    """Time of each part of the steps since it was last read. Off, it does nothing at all.

    On CUDA each lap waits until the device is done, so a run that is timed is slower.
    """

    def __init__(self, device: str, *, on: bool) -> None:
        self.device, self.on = torch.device(device), on
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.last, self.steps = time.perf_counter(), 0

    def lap(self, part: str | None) -> None:
        """What passed since the last lap goes to `part`; None: to nothing, and a step begins."""
        if not self.on:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if part is None:
            self.steps += 1
        else:
            self.spent[part] += now - self.last
        self.last = now

    def read(self) -> dict[str, float]:
        """Milliseconds a step of every part, and start anew; nothing if it is off."""
        if not self.on:
            return {}
        found = {f"ms_{part}": 1e3 * seconds / max(1, self.steps) for part, seconds in self.spent.items()}
        self.spent, self.steps = dict.fromkeys(PARTS, 0.0), 0
        return found
