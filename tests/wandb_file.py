"""A run file of W&B read back: what would be sent to the server, as plain values.

The file is a log of LevelDB's (7 bytes of file header, blocks of 32 KiB, 7 bytes of header per
chunk) of `wandb_internal_pb2.Record`.
"""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32 * 1024, 7
WAIT = 20.0  # seconds
FULL, FIRST, _, LAST = 1, 2, 3, 4  # kinds of chunk


@dataclass
class RunFile:
    """history: the rows logged; artifacts: the protobuf records; files: paths under `folder`."""

    folder: Path
    id: str = ""
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        return {key for row in self.history for key in row if not key.startswith("_")}

    def logged(self, key: str) -> list:
        """All values logged under a key, in order."""
        return [row[key] for row in self.history if key in row]

    def artifact(self, kind: str) -> list[dict[str, Path]]:
        """The artifacts of a type: each {path in it: the file it is read from}."""
        return [
            {entry.path: Path(entry.local_path) for entry in a.manifest.contents}
            for a in self.artifacts
            if a.type == kind
        ]


def records(path: Path) -> list[Record]:
    """Every whole record of a run file, in order; it may not be written to its end yet."""
    data, offset, parts, found = path.read_bytes(), HEADER, [], []
    assert data[:4] == b":W&B"[: len(data)]
    while offset + HEADER <= len(data):
        if BLOCK - offset % BLOCK < HEADER:  # too little is left of a block for a header: padding
            offset += BLOCK - offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        start = offset + HEADER
        if start + length > len(data):
            break
        parts.append(data[start : start + length])
        offset = start + length
        if kind in (FULL, LAST):
            found.append(Record.FromString(b"".join(parts)))
            parts = []
    return found


def values(items) -> dict:
    """Items of history, summary or config as {key: value}, nested ones as dicts in it."""
    result: dict = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = result
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return result


def read(path: Path) -> RunFile:
    """The run of a run file, or the newest run of a run directory, once its end is written.

    W&B's own process writes it, which may be after `wandb.finish` returned.
    """
    if path.is_dir():
        path = max(path.glob("wandb/*run-*/*.wandb"))
    result, end = RunFile(path.parent / "files"), time.monotonic() + WAIT
    while not (found := records(path)) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end, f"{path} has no end"
        time.sleep(0.1)
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result.id = record.run.run_id
            result.config |= values(record.run.config.update)
        elif kind == "config":
            result.config |= values(record.config.update)
        elif kind == "history":
            result.history.append(values(record.history.item))
        elif kind == "summary":
            result.summary |= values(record.summary.update)
        elif kind == "files":
            result.files += [file.path for file in record.files.files]
        elif kind == "alert":
            result.alerts.append((record.alert.title, record.alert.text))
        elif kind == "metric" and record.metric.step_metric:
            metric = record.metric
            result.axes[metric.name or metric.glob_name] = metric.step_metric
        elif kind == "artifact":
            result.artifacts.append(record.artifact)
        elif kind == "request" and record.request.HasField("log_artifact"):
            result.artifacts.append(record.request.log_artifact.artifact)
    return result


def local_paths(artifact) -> list[Path]:
    """The files that an artifact will be read from; not what it refers to."""
    return [Path(entry.local_path) for entry in artifact.manifest.contents if entry.local_path]
