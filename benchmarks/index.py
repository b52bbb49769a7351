"""Seconds and peak memory of indexing N tiny images: `python -m benchmarks.index tar 1000000`.

`folder`, `tar`, `zip` or `parquet`. The files are written first by a child process, whose time and
memory do not count; a second index of the same source is timed as well.
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from hashlib import blake2b
from pathlib import Path

from PIL import Image

ROW_GROUP = 1_000


def tiny(number: int) -> bytes:
    """A PNG of 8 x 8 pixels, unlike any other."""
    file, pixels = io.BytesIO(), blake2b(str(number).encode(), digest_size=64).digest()
    Image.frombytes("L", (8, 8), pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def write(kind: str, count: int, folder: Path) -> None:
    """Fill a folder with one source of `count` images."""
    if kind == "folder":
        for number in range(count):
            path = folder / "x" / f"{number // 1000:04}" / f"{number:07}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiny(number))
    elif kind == "tar":
        with tarfile.open(folder / "x.tar", "w") as tar:
            for number in range(count):
                member = tarfile.TarInfo(f"{number:07}.png")
                content = tiny(number)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                tar.members.clear()
    elif kind == "zip":
        with zipfile.ZipFile(folder / "x.zip", "w") as archive:
            for number in range(count):
                archive.writestr(f"{number:07}.png", tiny(number))
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("image", pa.binary())])
        with pq.ParquetWriter(folder / "x.parquet", schema) as writer:
            for first in range(0, count, ROW_GROUP):
                rows = [tiny(n) for n in range(first, min(count, first + ROW_GROUP))]
                writer.write_table(pa.table({"image": rows}, schema=schema))


def main(kind: str, count: int) -> None:
    """Print what listing, indexing, splitting and indexing again take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = multiprocessing.get_context("fork").Process(
            target=write, args=(kind, count, folder)
        )
        child.start()
        child.join()
        from vizer_rl.data.content_split import content_split
        from vizer_rl.data.sources import ImageFolder, open_images

        (source,) = folder.iterdir()
        began = time.monotonic(), time.process_time()

        def report(what: str) -> None:
            nonlocal began
            now = time.monotonic(), time.process_time()
            seconds, cpu = now[0] - began[0], now[1] - began[1]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{kind} {count}: {what} {seconds:.1f} s, CPU {cpu:.1f} s, peak {peak:.2f} GiB")
            began = time.monotonic(), time.process_time()

        report("start")
        open_images(source)
        report("list")
        facts = folder / "facts.npy"
        images = ImageFolder.index(source, decoded=facts)
        report("index")
        split = content_split(images.ids, images.facts_of(images.ids), 64, 500)
        report(f"split ({len(split.train)} to train on, near {split.near})")
        del images, split
        ImageFolder.index(source, decoded=facts)
        report("index again")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
