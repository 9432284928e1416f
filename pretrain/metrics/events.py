"""TensorBoard's event files, written at once and in the caller's thread.

tensorboard's own writer has a thread that dies of a full disk, with a traceback, and takes the run with it.
"""

import io
import os
import socket
import struct
import time
from pathlib import Path

from matplotlib.figure import Figure

from shards.files.journal import Journal


class EventFile:
    """Scalars and pictures of a run, as TensorBoard reads them.

    Args:
        folder: of event files; a new one is made in it with the first record.
        first_step: what older files hold from this step on is purged in TensorBoard.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._journal = Journal(folder / name)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        purge = event_pb2.Event(wall_time=time.time(), step=first_step, session_log=start)
        self._start = _framed(version.SerializeToString()) + _framed(purge.SerializeToString())

    def add_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One event with all scalars of a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, Summary(value=[Summary.Value(tag=name, simple_value=one) for name, one in scalars.items()]))

    def add_figure(self, step: int, name: str, figure: Figure) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        width, height = (round(side) for side in figure.get_size_inches() * figure.dpi)
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=picture.getvalue())
        self._add(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        self._journal.close()

    def _add(self, step: int, summary: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        if self._journal.append(self._start + _framed(event.SerializeToString())):
            self._start = b""


def _framed(record: bytes) -> bytes:
    """A record as TFRecord files hold it: length, its checksum, the record, its checksum."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(record))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, record)]
    return length + checks[0] + record + checks[1]
