"""TensorBoard's event files."""

import json
import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from husai.tracking.base import Distribution, Tracker


class TensorBoardTracker(Tracker):
    """An event file that `tensorboard --logdir` shows."""

    name = "TensorBoard"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.last = step

        def write() -> None:
            from torch.utils.tensorboard.summary import scalar

            for name, value in figures.items():
                self.run.add(step, summary=scalar(name, value))

        self._try(write)

    def log_statistics(self, statistics: Mapping[str, Distribution], step: int) -> None:
        def write() -> None:
            from torch.utils.tensorboard.summary import histogram_raw, scalar

            for name, one in statistics.items():
                middles, counts = (one.edges[1:] + one.edges[:-1]) / 2, one.counts
                self.run.add(step, summary=scalar(f"{name}/norm", one.norm))
                self.run.add(step, summary=scalar(f"{name}/mean", one.mean))
                whole = histogram_raw(
                    name,
                    min=one.edges[0],
                    max=one.edges[-1],
                    num=counts.sum(),
                    sum=one.mean * counts.sum(),
                    sum_squares=(counts * middles**2).sum(),
                    bucket_limits=one.edges[1:].tolist(),
                    bucket_counts=counts.tolist(),
                )
                self.run.add(step, summary=whole)

        self._try(write)

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        numbers = {f"summary/{name}": float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        self.log(numbers, self.last)
        self.text("summary", fenced(metrics))

    def text(self, name: str, markdown: str) -> None:
        def write() -> None:
            from torch.utils.tensorboard.summary import text

            self.run.add(self.last, summary=text(name, markdown))

        self._try(write)

    def show(self, images: Iterable[Path]) -> None:
        self._try(lambda: [self.run.add_image(f"figures/{path.stem}", path.read_bytes(), self.last) for path in images])

    def finish(self, failed: bool = False) -> None:
        self._try(self.run.close)


class Events:
    """A TensorBoard event file whose every record is on disk when `add` returns, so that its failures are known at once.

    Of an earlier attempt at the same run, whose file lies beside it, TensorBoard then shows nothing.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() / 1e9:017.6f}.{os.uname().nodename}.{os.getpid()}"
        self.event, self.file = Event, (folder / name).open("wb")
        self.records = RecordWriter(self.file)
        self.add(0, file_version="brain.Event:2")
        self.add(0, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **content: Any) -> None:
        self.records.write(self.event(wall_time=time.time(), step=step, **content).SerializeToString())
        self.records.flush()

    def add_image(self, name: str, png: bytes, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self.add(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        self.records.close()


def fenced(data: Mapping[str, Any]) -> str:
    """Plain data as Markdown."""
    return f"```\n{json.dumps(dict(data), indent=2, default=str)}\n```"


def start(folder: Path, config: Mapping[str, Any]) -> Events:
    """An event file in `folder` that begins with the config."""
    from torch.utils.tensorboard.summary import text

    events = Events(folder)
    events.add(0, summary=text("config", fenced(config)))
    return events
