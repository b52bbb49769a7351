"""Licences of scorers' weights, for environment.json: those that are certain, by tag.

Read on the checkpoints' cards and in open_clip's docs/PRETRAINED.md. A tag that is not here stays
unknown: kin of a checkpoint may have another licence (openai's weights have one on each copy).
"""

from __future__ import annotations

from .schema import Run

LICENCES = {  # first characters of an open_clip tag: the licence of all tags that begin so
    "datacomp_xl_": "MIT",
    "dfn2b": "apple-amlr (research only)",
    "dfn5b": "apple-amlr (research only)",
    "laion2b_s32b_": "MIT",
    "metaclip_400m": "CC-BY-NC-4.0",
    "metaclip_fullcc": "CC-BY-NC-4.0",
    "webli": "Apache-2.0",
}
EMBEDDED = "Apache-2.0, as this project"
UNKNOWN = "unknown: see the checkpoint's card"


def scorer_licence(name: str) -> str:
    """The licence of a scorer's weights, by the name that a run file gives it."""
    if name.startswith("embedded:"):
        return EMBEDDED
    tag = "" if name.startswith("local-dir:") else name.partition("/")[2]
    return next((licence for start, licence in LICENCES.items() if tag.startswith(start)), UNKNOWN)


def scorer_licences(run: Run) -> dict[str, str]:
    """{name: licence} of a run's scorers and of the encoders that its rewards name."""
    names = [run.scorer.train, run.scorer.heldout]
    for settings in run.rewards.values():
        encoders = (settings.get("encoder"), settings.get("neighbours"))
        names += [name for name in encoders if isinstance(name, str) and name != "policy"]
    return {name: scorer_licence(name) for name in names}
