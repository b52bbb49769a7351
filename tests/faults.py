"""Faults of a disk for tests: a folder that takes no more, files that are damaged."""

import builtins
import io
import os

FAULTS = {28: "No space left on device", 30: "Read-only file system", 13: "Permission denied"}


def refuse(monkeypatch, folder, number):
    """From here on nothing is written, made, renamed or deleted in a folder: OSError(number)."""
    folder = os.path.abspath(folder)

    def guarded(call, changes=lambda *_, **__: True):
        def guard(path, *args, **kwargs):
            named = isinstance(path, str | os.PathLike)  # and no descriptor
            if named and os.path.abspath(path).startswith(folder) and changes(*args, **kwargs):
                raise OSError(number, FAULTS[number], os.fspath(path))
            return call(path, *args, **kwargs)

        return guard

    def for_writing(mode="r", *_, **__):
        return bool({*mode} & {*"wax+"})

    for holder in (io, builtins):
        monkeypatch.setattr(holder, "open", guarded(open, for_writing))
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


def flip(path, byte):
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
