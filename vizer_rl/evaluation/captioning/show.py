"""`vizer-rl caption` without --out, of a model or of the best of n: printed, nothing written."""

from __future__ import annotations

from dataclasses import replace

from ...errors import UserError
from ..marks import legend, marked_words
from ..tables import PlainConsole, make_table
from .batches import Decoded
from .caption_set import CaptionJob, MakeChoose
from .journal import Row
from .pictures import Picture, find_pictures
from .row_maker import RowMaker, evaluated_classes, learned_classes


def show_captions(job: CaptionJob, make_choose: MakeChoose) -> None:
    """Print the captions of images, their doubtful and unsure words marked."""
    console, job = PlainConsole(), replace(job, certainty=True)
    pictures, run = find_pictures(job.sources, console.print), job.run()
    for sentence in pictures.remarks:
        console.print(sentence, soft_wrap=True)
    with console.status("loading the policy"):
        make = job.row_maker(run, "", make_choose, console)
    rows, decoded = _rows(make, pictures.rows, job)
    for why in decoded.left_out.values():
        console.print(f"Left out: {why}", soft_wrap=True)
    if not rows:
        raise UserError(f"not one of {len(pictures.rows)} images can be used")
    table = make_table("image", f"best of {job.best_of}" if job.best_of > 1 else "caption")
    for row in rows:
        text = marked_words(row["caption"], row.get("doubtful") or (), row.get("unsure") or ())
        table.add_row(row["image"], text)
    console.print(table)
    for sentence in legend(rows, make.dial[0] if make.dial else 0.0):
        console.print(sentence, soft_wrap=True)


def _rows(make: RowMaker, pictures: list[Picture], job: CaptionJob) -> tuple[list[Row], Decoded]:
    """Rows of all images; without a run's captions, classes of words come from these."""
    classes, rows, decoded = evaluated_classes(job.run_directory), list[Row](), Decoded()
    for batch, images, _ in decoded.batches(pictures):
        if batch:
            rows += make(batch, images, classes)
    if classes is None and rows:
        classes, by_name = learned_classes([r["caption"] for r in rows]), dict[str, Row]()
        for batch, images, _ in Decoded().batches(pictures):
            own = [row for row in rows if row["image"] in {picture.name for picture in batch}]
            by_name |= {row["image"]: row for row in make.doubts(own, images, classes)}
        rows = [by_name.get(row["image"], row) for row in rows]
    return rows, decoded
