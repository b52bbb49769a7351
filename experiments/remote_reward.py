"""Remote reward: asks an HTTP scorer on another machine, with time-out, retries, a clear stop.

An example to copy: `rewards: {experiments/remote_reward.py: {url: http://host:8000/score}}`. The
scorer gets {"items": [{"image_id", "caption", "image"}]}, the image as base64 PNG and left out
where an item before has the same id, and answers {"scores": [number or null, …]}. Requests are
sent together, `batch_size` captions each. A scorer that is busy or away (time-out, no connection,
429, 5xx) is asked again after 1, 2, 4, … times `wait` seconds, for two minutes unless set otherwise
and never beyond a reward's time limit; when it has failed `tries` times, or says that the request
is wrong (any other 4xx), the run stops with the reason and can be resumed.
Cost: one image and one caption sent per caption, and whatever the scorer takes.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import urllib.error
import urllib.request

from rewards import CaptionBatch, Scores


class RemoteReward:
    """The score of image and caption by a scorer at `url`."""

    range = (0.0, 1.0)
    reads = ("image", "text")

    def __init__(
        self,
        *,
        url: str,
        timeout: float = 30.0,
        tries: int = 8,
        wait: float = 1.0,
        batch_size: int = 16,
    ) -> None:
        """`url`: where to POST; `timeout`: seconds per request; `tries`: before the run stops;
        `wait`: seconds before the second, doubled each time; `batch_size`: captions per request."""
        self.url, self.timeout, self.tries = url, timeout, tries
        self.wait, self.batch_size = wait, batch_size

    async def __call__(self, batch: CaptionBatch) -> Scores:
        rows = range(len(batch.captions))
        chunks = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        answers = await asyncio.gather(*(self._request(batch, chunk) for chunk in chunks))
        return [score for scores in answers for score in scores]

    async def _request(self, batch: CaptionBatch, rows: range) -> list[float | None]:
        """The scores of these rows; ConnectionError after `tries`, ValueError where refused."""
        body = json.dumps({"items": _items(batch, rows)}).encode()
        for attempt in range(1, self.tries + 1):
            try:
                answer = await asyncio.to_thread(self._post, body)
                break
            except urllib.error.HTTPError as error:
                if error.code != 429 and error.code < 500:
                    raise ValueError(f"{self.url} refuses the request: {error}") from error
                cause: Exception = error
            except OSError as error:  # no connection, or none in time
                cause = error
            if attempt == self.tries:
                raise ConnectionError(
                    f"{self.url} failed {self.tries} times, the last time with: {cause}"
                ) from cause
            await asyncio.sleep(self.wait * 2 ** (attempt - 1))
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(rows):
            raise ValueError(f"{self.url} answered {answer!r:.80}: no list of {len(rows)} scores")
        return scores

    def _post(self, body: bytes) -> object:
        request = urllib.request.Request(
            self.url, body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.load(answer)


def _items(batch: CaptionBatch, rows: range) -> list[dict[str, str]]:
    items: list[dict[str, str]] = []
    sent: set[str] = set()
    for row in rows:
        image_id = batch.image_ids[row]
        items.append({"image_id": image_id, "caption": batch.captions[row]})
        if image_id not in sent:
            file = io.BytesIO()
            batch.images[row].save(file, "PNG")
            items[-1]["image"] = base64.b64encode(file.getvalue()).decode()
            sent.add(image_id)
    return items
