# SPDX-License-Identifier: Apache-2.0
"""Writing a ROS 2 bag (MCAP) that appears under its name only once it is complete."""

import shutil
import tempfile
from pathlib import Path

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from pose_refiner_ros.ros.message_types import typestore


class BagRecorder:
    """`with BagRecorder(path) as bag: bag.write(topic, type, stamp, data)`.

    An error, or leaving the block by one, leaves nothing behind and an older bag untouched.
    """

    def __init__(self, path, overwrite=False):
        self.path = Path(path).absolute()
        if self.path.exists() and not overwrite:
            raise FileExistsError(f"{self.path} exists already; choose another name or remove it")
        self._connections = {}  # topic -> Connection
        self._folder = None
        self._writer = None

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(
            tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
        )
        # The file inside is named after its folder, so only the folder around it is temporary.
        self._writer = Writer(
            self._folder / self.path.name, version=9, storage_plugin=StoragePlugin.MCAP
        )
        # Compressed in chunks by MCAP itself: readable and seekable by every tool.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._writer.close()
                if self.path.is_dir():
                    shutil.rmtree(self.path)
                else:
                    self.path.unlink(missing_ok=True)
                (self._folder / self.path.name).rename(self.path)
            else:
                self._writer.abort()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add_topic(self, topic, message_type, definition=None, type_hash=None, qos=()):
        """Announce a topic, so that it is listed even without messages. The definition is that of
        Jazzy unless it is given."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic,
                message_type,
                typestore=typestore() if definition is None else None,
                msgdef=definition,
                rihs01=type_hash,
                offered_qos_profiles=qos,
            )

    def write(self, topic, message_type, stamp, data):
        """data: the message in CDR, bytes. stamp: when it was received, nanoseconds."""
        self.add_topic(topic, message_type)
        self._writer.write(self._connections[topic], stamp, data)
