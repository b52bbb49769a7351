"""Caption file of ViZer_GT: image id -> the caption a person wrote, for training images.

Nothing else in the package trains on a label; this is read only where a run file has both
`mapper.source: captions` and `mapper.captions: FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, nearest_allowed


def read(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Image id -> caption, of the training images `ids` that the file names.

    A line is {"image_id" or "file": id, "caption": text}; other images' captions are passed over.
    Raises UserError at the first line of another kind, or where no training image has a caption.
    """
    training_ids, captions, image_id = set(ids), dict[str, str](), ""
    for number, line in enumerate(path.expanduser().read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image_id = row.get("image_id", row.get("file"))
            caption = row["caption"]
        except (ValueError, KeyError, AttributeError) as error:
            wrong = f"{path}:{number}: {line[:60]!r}; allowed: an object with image_id and caption"
            raise UserError(wrong) from error
        if not (isinstance(image_id, str) and isinstance(caption, str) and caption.strip()):
            raise UserError(f"{path}:{number}: image_id and caption must be text, not empty")
        if image_id in training_ids:
            captions[image_id] = caption.strip()
    if not captions:
        nearest = f"{image_id!r}: {nearest_allowed(image_id, ids)}"
        raise UserError(f"{path} has a caption for no training image; {nearest}")
    return captions
