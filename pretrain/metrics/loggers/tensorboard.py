"""TensorBoard event files, written immediately in the caller's thread.

When the disk is full, the thread of tensorboard's own writer fails with a traceback and ends the run.
"""

import os
import socket
import struct
import time
from pathlib import Path

from pretrain.config.loggers import LoggerConfig
from pretrain.metrics.loggers.logger import LoggedRun, Logger
from shards.files.journal import Journal


class TensorBoard(Logger):
    """Writes event files to ``tensorboard/`` in the run folder; each process starts a new file with its first record.

    TensorBoard discards the records of earlier files after ``run.first_step``.
    """

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        from tensorboard.compat.proto import event_pb2

        folder = run.folder / "tensorboard"
        name = f"events.out.tfevents.{_start(folder):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._journal = Journal(folder / name)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        purge = event_pb2.Event(wall_time=time.time(), step=run.first_step + 1, session_log=start)
        self._header = _framed(version.SerializeToString()) + _framed(purge.SerializeToString())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, Summary(value=[Summary.Value(tag=name, simple_value=one) for name, one in values.items()]))

    def figure(self, step: int, name: str, png: bytes) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])  # of the header, PNG's first chunk
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._add(step, Summary(value=[Summary.Value(tag=name, tensor=tensor, metadata=plugin)]))

    def close(self) -> None:
        self._journal.close()

    def _add(self, step: int, summary: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        if self._journal.append(self._header + _framed(event.SerializeToString())):
            self._header = b""


def _start(folder: Path) -> int:
    """Return the time for the name of a new file, in seconds: the current one, but later than those of all files there.

    TensorBoard reads files in the order of their names, and the clock of this host may be behind the last one's.
    """
    times = [int(name.split(".")[3]) for name in os.listdir(folder)] if folder.exists() else []
    return max([int(time.time()), *(last + 1 for last in times)])


def _framed(record: bytes) -> bytes:
    """Return a record in TFRecord format: length, checksum of the length, record, checksum of the record."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(record))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, record)]
    return length + checks[0] + record + checks[1]
