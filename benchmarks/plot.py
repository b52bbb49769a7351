"""Plot of the scaling cases, drawn with Pillow: seconds per step over G and image tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE, EDGE, GAP = 420, 60, 40
COLOURS = {"ours": "#1f77b4", "trl": "#d62728"}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Two panels, as far as there are at least two points for them; else nothing is written."""
    groups = [r for r in results if r["case"].startswith("group-")]
    tokens = [r for r in results if r["case"].startswith("tiles-")]
    panels = [(groups, "num_generations", "G"), (tokens, "image_tokens", "image tokens")]
    panels = [panel for panel in panels if len(panel[0]) > 1]
    if not panels:
        return
    width = len(panels) * (SIZE + 2 * EDGE) + GAP
    image = Image.new("RGB", (width, SIZE + 2 * EDGE), "white")
    for n, (rows, key, label) in enumerate(panels):
        _panel(ImageDraw.Draw(image), n * (SIZE + 2 * EDGE) + EDGE + GAP // 2, rows, key, label)
    image.save(path)


def _panel(
    canvas: ImageDraw.ImageDraw, left: int, rows: list[dict[str, Any]], key: str, label: str
) -> None:
    font = ImageFont.load_default(14)
    rows = sorted(rows, key=lambda row: row[key])
    max_seconds = max(row[side]["step_seconds"] for row in rows for side in COLOURS)
    max_x = rows[-1][key]

    def point(x: float, y: float) -> tuple[float, float]:
        return left + x / max_x * SIZE, EDGE + SIZE - y / max_seconds * SIZE

    canvas.line([point(0, max_seconds), point(0, 0), point(max_x, 0)], fill="black")
    for row in rows:
        x, y = point(row[key], 0)
        canvas.text((x, y + 6), str(row[key]), fill="black", font=font, anchor="ma")
    canvas.text((left + SIZE / 2, EDGE + SIZE + 30), label, fill="black", font=font, anchor="ma")
    title = f"seconds per step, up to {max_seconds:.2f}"
    canvas.text((left, EDGE - 22), title, fill="black", font=font)
    for side, colour in COLOURS.items():
        points = [point(row[key], row[side]["step_seconds"]) for row in rows]
        canvas.line(points, fill=colour, width=3)
        for x, y in points:
            canvas.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        name = "TRL" if side == "trl" else side
        canvas.text(
            (points[-1][0] - 4, points[-1][1] - 22), name, fill=colour, font=font, anchor="ra"
        )
