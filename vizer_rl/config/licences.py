"""Licences of weights, for environment.json and model cards: those that are certain, by name.

Read on the checkpoints' cards and in open_clip's docs/PRETRAINED.md. A name that is not here stays
unknown: kin of a checkpoint may have another licence (openai's weights have one on each copy).
"""

from __future__ import annotations

from pathlib import Path

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
POLICIES = {  # first characters of a hub id: the licence of all checkpoints that begin so
    "HuggingFaceTB/SmolVLM": "Apache-2.0",
    "Qwen/Qwen2-VL-2B": "Apache-2.0",
    "Qwen/Qwen2-VL-7B": "Apache-2.0",
    "Qwen/Qwen2.5-VL-3B": "Qwen Research License",
    "Qwen/Qwen2.5-VL-7B": "Apache-2.0",
}
EMBEDDED = "Apache-2.0, as this project"
UNKNOWN = "unknown: see the checkpoint's card"


def scorer_licence(name: str) -> str:
    """The licence of a scorer's weights, by the name that a run file gives it."""
    if name.startswith("embedded:"):
        return EMBEDDED
    tag = "" if name.startswith("local-dir:") else name.partition("/")[2]
    return next((licence for start, licence in LICENCES.items() if tag.startswith(start)), UNKNOWN)


def policy_licence(run: Run) -> str:
    """The licence of a run's policy before training: by its name, or of a folder by its card."""
    model = run.policy.model
    if model == "embedded":
        return EMBEDDED
    if (path := Path(model).expanduser() / "README.md").is_file():
        from huggingface_hub import ModelCard

        data = ModelCard(path.read_text(errors="replace"), ignore_metadata_errors=True).data
        name = str(data.get("license") or UNKNOWN)
        return "Apache-2.0" if name == "apache-2.0" else name
    return next(
        (licence for start, licence in POLICIES.items() if model.startswith(start)), UNKNOWN
    )


def scorer_licences(run: Run) -> dict[str, str]:
    """{name: licence} of a run's scorers and of the encoders that its rewards name."""
    names = (run.scorer.train, run.scorer.heldout, *run.reward_scorers)
    return {name: scorer_licence(name) for name in names}
