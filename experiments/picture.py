"""The picture in README: held-out scenes with their captions before and after training.

.venv/bin/python -m experiments.picture runs/smolvlm-scenes docs/captions.png
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDE, SIDE, COLUMNS, ROWS = 420, 192, 2, 3
CAPTIONS = {  # of captions.jsonl: label and colour
    "base": ("before", "#a33"),
    "trained": ("after", "#161"),
    "truth": ("truth", "#666"),
}


def wrapped(text: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that fit."""
    lines, line = [], ""
    for word in text.split():
        if font.getlength(f"{line} {word}") > width:
            lines, line = [*lines, line], word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


def sheet(directory: Path) -> Image.Image:
    """The first held-out scenes whose caption changed, none picked."""
    heldout = json.loads((directory / "heldout.json").read_text())
    rows = [json.loads(x) for x in (directory / "captions.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["base"] != r["trained"]][: COLUMNS * ROWS]
    page = Image.new("RGB", (COLUMNS * (SIDE + WIDE + 24), ROWS * (SIDE + 16)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(17)
    for k, row in enumerate(rows):
        x, y = (k % COLUMNS) * (SIDE + WIDE + 24), (k // COLUMNS) * (SIDE + 16)
        scene = Image.open(Path(heldout["source"]) / row["image_id"]).resize((SIDE, SIDE))
        page.paste(scene, (x + 8, y + 8))
        line_y = y + 14
        for key, (label, colour) in CAPTIONS.items():
            for line in wrapped(f"{label}: {row[key]}", font, WIDE - 16):
                draw.text((x + SIDE + 20, line_y), line, colour, font)
                line_y += 22
            line_y += 6
    return page


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet(Path(sys.argv[1])).save(target)
