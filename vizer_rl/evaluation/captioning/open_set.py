"""An image set on its way: what is done of it, what waits, and what is written when.

A batch goes into the journal first, then into its sidecars: whatever a kill leaves out is written
from the journal at the next start. All other files are written at the end, at one stroke.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from rewards.lib.word_classes import WordClasses

from ...errors import UserError
from ...files import write_jsonl
from . import outputs
from .batches import Decoded
from .journal import Journal, Row
from .outputs import Output
from .pictures import Picture, Pictures
from .progress import captioning_progress
from .row_maker import RowMaker, learned_classes


class OpenSet:
    """The images of a set, and their captions so far.

    kept: images with a text file that is not ours, and is not to be replaced.
    """

    def __init__(self, output: Output, pictures: Pictures, key: str, *, overwrite: bool) -> None:
        """Take up the set where it was left; UserError where its file is not of this key."""
        outputs.clear_parts(output, pictures.rows, key)
        self.output, self.pictures, self.decoded = output, pictures, Decoded()
        self.journal = Journal(output.journal(key), key, overwrite=overwrite)
        stale = self.journal.keep({p.name: p.size for p in pictures.rows if p.size})
        self.kept = set[str]()
        if output.form == "sidecar":
            self._take_up_sidecars(overwrite, stale)
        out = {*self.kept, *self.decoded.left_out, *self.journal.rows}
        self.waiting = [p for p in pictures.rows if p.name not in out]

    def _take_up_sidecars(self, overwrite: bool, stale: Mapping[str, Row]) -> None:
        """Write those that the journal alone has; keep files of others.

        stale: the rows of images that were replaced, whose own text files go.
        """
        first = dict[object, str]()
        for picture in self.pictures.rows:
            path, row = self.output.sidecar(picture.name), self.journal.rows.get(picture.name)
            if (other := first.setdefault(path, picture.name)) != picture.name:
                why = f"'{picture.name}' would have the text file of '{other}'."
                self.decoded.left_out[picture.name] = why
            elif row is not None and not path.exists():
                outputs.write_sidecars(self.output, [row])
            elif (old := stale.get(picture.name)) and outputs.has_sidecar(self.output, old):
                path.unlink()
            elif path.exists() and (row is None or not outputs.has_sidecar(self.output, row)):
                if not overwrite:
                    self.kept.add(picture.name)
                elif row is not None:
                    outputs.write_sidecars(self.output, [row])

    def caption(self, make: RowMaker, classes: WordClasses | None, console: Console) -> None:
        """Caption what waits, batch by batch."""
        with captioning_progress(console, "captioning", len(self.waiting)) as advance:
            for pictures, images, count in self.decoded.batches(self.waiting):
                if pictures:
                    rows = make(pictures, images, classes)
                    self.journal.append(rows)
                    if self.output.form == "sidecar":
                        outputs.write_sidecars(self.output, rows)
                advance(count)

    def undoubted(self) -> list[Picture]:
        """The images whose doubtful words are to come."""
        waiting = {
            name
            for name, row in self.journal.rows.items()
            if None in (row.get("doubtful", ""), row.get("unsure", ""))
        }
        return [picture for picture in self.pictures.rows if picture.name in waiting]

    def add_doubts(self, make: RowMaker, console: Console) -> None:
        """Mark doubtful words, by classes that are learned from all captions of the set."""
        rows = dict(self.journal.rows)
        if not (waiting := self.undoubted()):
            return
        classes = learned_classes([row["caption"] for row in rows.values()])
        with captioning_progress(console, "doubtful words", len(waiting)) as advance:
            for pictures, images, count in self.decoded.batches(waiting):
                if pictures:
                    new = make.doubts([rows[p.name] for p in pictures], images, classes)
                    rows |= {row["image"]: row for row in new}
                advance(count)
        self.journal.rewrite(rows.values())

    def finish(self) -> list[Row]:
        """Write the file of all captions and the list of what was left out; all rows.

        Rows stand in the order of the images. UserError where there is not one.
        """
        left_out = self.decoded.left_out
        if not self.journal.rows and not self.kept:
            reason = f", the first: {next(iter(left_out.values()))}" if left_out else ""
            raise UserError(f"not one of {len(self.pictures.rows)} images can be used{reason}")
        self.journal.close()
        order = {picture.name: k for k, picture in enumerate(self.pictures.rows)}
        rows = sorted(self.journal.rows.values(), key=lambda r: order.get(r["image"], len(order)))
        outputs.write_whole(self.output, self.pictures.root, rows)
        if left_out:
            lines = [{"image": name, "reason": why} for name, why in left_out.items()]
            write_jsonl(self.output.left_out, lines)
        else:
            self.output.left_out.unlink(missing_ok=True)
        return rows
