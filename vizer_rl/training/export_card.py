"""Model card of an export: what it was trained on and for, what came of it, and how to load it.

All of it is read from the run directory. No path of the machine that trained stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml
from transformers import BitsAndBytesConfig

import rewards as reward_files

from ..config.licences import UNKNOWN, policy_licence, scorer_licences
from ..config.schema import Run
from ..errors import masked, printable
from ..evaluation.before_after import further_scorer
from ..evaluation.report.run_files import RunFiles, read_run_files
from ..evaluation.tables import LABELS, SIDES, interval_text, title
from .export_base import Base
from .export_parity import Parity

IMPORTS = {
    "adapter": "from peft import PeftModel\n"
    "from transformers import AutoModelForImageTextToText, AutoProcessor",
    "merged": "from transformers import AutoModelForImageTextToText, AutoProcessor",
}
LOAD = {
    "adapter": 'base = AutoModelForImageTextToText.from_pretrained({base}, dtype="{dtype}"{more})\n'
    "model = PeftModel.from_pretrained(base, FOLDER).eval()",
    "merged": 'model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="{dtype}").eval()',
}
CAPTION = """\
from PIL import Image
from transformers import GenerationConfig

content = [{{"type": "image", "image": Image.open("photo.jpg").convert("RGB")}},
           {{"type": "text", "text": {prompt}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
ids = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(FOLDER))
print(processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
"""


def card(
    run: Run,
    run_directory: Path,
    kind: str,
    base: Base,
    parity: Parity,
    compared: bool,
    settings: Mapping[str, Any],
) -> str:
    """The README.md of an export of this kind, "adapter" or "merged".

    compared: whether the base is known to be the one that was trained on; settings: of
    `base_settings`, which the base of an adapter is loaded with.
    """
    files = read_run_files(run_directory)
    licence = policy_licence(run)
    sections = [
        _front_matter(kind, base, licence),
        f"# {run.name}\n\n{_summary(run, kind, base)}",
        f"## How to load it\n\n{_loading(run, kind, base, parity, settings)}",
        f"## Result\n\n{_result(files)}",
        f"## Training\n\n{_training(run, files)}",
        f"## Audit of the rewards\n\n{_audit(files)}",
        f"## Alarms\n\n{_alarms(files)}",
        f"## Parity\n\n{_parity(parity, compared)}",
        f"## Licences\n\n{_licences(run, base, licence)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(kind: str, base: Base, licence: str) -> str:
    """What the hub reads of a card."""
    content: dict[str, Any] = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "image-text-to-text",
        **_declared(licence),
        "tags": ["vizer_rl", "image-captioning", *(["lora"] if kind == "adapter" else [])],
    }
    if base.kind == "hub":
        relation = "adapter" if kind == "adapter" else "finetune"
        content |= {"base_model": base.source, "base_model_relation": relation}
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---"


def _declared(licence: str) -> dict[str, str]:
    """A licence as the hub wants it declared: its own identifiers, others by name, none unknown."""
    identifier = licence.split(",")[0].lower()
    if licence == UNKNOWN:
        return {}
    if re.fullmatch(r"[a-z0-9.-]+", identifier):
        return {"license": identifier}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", identifier)}


def _summary(run: Run, kind: str, base: Base) -> str:
    what = "A LoRA adapter for" if kind == "adapter" else "The weights, adapter merged, of"
    return (
        f"{what} {base.name} ({run.family}), trained by vizer_rl to caption images: by "
        f"reinforcement learning ({run.algorithm}) from its own captions, without one text label."
    )


def _loading(run: Run, kind: str, base: Base, parity: Parity, settings: Mapping[str, Any]) -> str:
    source = 'FOLDER + "/base"' if base.kind == "embedded" else repr(base.source)
    more = "".join(f",\n    {name}={_code(name, value)}" for name, value in settings.items())
    load = LOAD[kind].format(base=source, dtype=parity.dtype, more=more)
    bits = ", BitsAndBytesConfig" if "quantization_config" in settings else ""
    caption = CAPTION.format(prompt=repr(run.data.prompt))
    return (
        "`FOLDER` is this folder; from the hub it is what "
        '`huggingface_hub.snapshot_download("OWNER/NAME")` returns.\n\n'
        f'```python\nFOLDER = "."\n\n{IMPORTS[kind]}{bits}\n'
        f"processor = AutoProcessor.from_pretrained(FOLDER)\n{load}\n```\n\n"
        f"A caption as the run writes them, greedy:\n\n```python\n{caption}```"
    )


def _code(name: str, value: Any) -> str:
    """An argument of `from_pretrained` as a program has it, for any machine."""
    if name == "device_map":
        return repr("auto")
    if not isinstance(value, BitsAndBytesConfig):
        return repr(value)
    given = {k: v for k, v in value.to_diff_dict().items() if not k.startswith("_")}
    return f"BitsAndBytesConfig(**{given})"


def _result(files: RunFiles) -> str:
    evaluation = files.evaluation
    if evaluation is None:
        return "eval.json of the run cannot be read."
    rows: list[tuple[str, ...]] = [("", *SIDES)]
    for name in evaluation.base:
        cells = (
            interval_text(getattr(evaluation, side)[name], name, side)
            for side in SIDES
            if name in getattr(evaluation, side)
        )
        rows.append((title(name) if further_scorer(name) else LABELS.get(name, name), *cells))
    verdict = evaluation.verdict.sentences if evaluation.verdict else []
    return "\n\n".join(
        [
            f"On {evaluation.n_images} held-out images (mean, 95 % bootstrap interval):",
            _table(rows),
            *_list(verdict),
        ]
    )


def _training(run: Run, files: RunFiles) -> str:
    rows: list[tuple[str, ...]] = [("reward", "weight", "parameters")]
    for key, settings in run.rewards.items():
        parameters = {k: _public(v) for k, v in settings.items() if k != "weight"}
        text = ", ".join(f"{k} = {v}" for k, v in parameters.items())
        rows.append((reward_files.title(key), f"{settings['weight']:g}", text))
    step = int(files.metrics[-1].get("step", 0)) if files.metrics else 0
    score = "" if files.kept_score is None else f", held-out score {files.kept_score:.3f}"
    numbers = files.environment
    counts = f"{numbers.get('train_images', '?')} to train on, {numbers.get('heldout_images', '?')}"
    source = "drawn scenes" if run.data.images is None else f"`{_public(run.data.images)}`"
    lines = [
        f"data: {source}, {counts} held out; pixels alone, no caption and no label",
        f"prompt: {printable(run.data.prompt)}",
        f"algorithm: {run.algorithm}, {step} steps, seed {run.seed}; the adapter kept is the "
        f"{run.monitor.keep}{score}",
        f"scorers: {_public(run.scorer.train)} for rewards, {_public(run.scorer.heldout)} held out",
        "versions: " + ", ".join(f"{k} {numbers.get(k, '?')}" for k in VERSIONS),
    ]
    return "\n".join(f"- {line}" for line in lines) + f"\n\n{_table(rows)}"


VERSIONS = ("torch", "transformers", "trl", "peft")


def _audit(files: RunFiles) -> str:
    if files.audit is None:
        return "None was made."
    verdict = files.audit.verdict
    lines = [f"{line.level}: {line.says} {line.do or ''}".strip() for line in verdict.lines]
    return "\n\n".join([f"Before training, verdict: {verdict.overall}.", *_list(lines)])


def _alarms(files: RunFiles) -> str:
    lines = [f"step {alarm.step}: {alarm.sentence}" for alarm in files.alarms]
    return "\n\n".join(_list(lines)) or "None was raised while it trained."


def _parity(parity: Parity, compared: bool) -> str:
    base = (
        "The base is the one it was trained on, by its hash."
        if compared
        else "The base was not compared with the one it was trained on: transformers or the type "
        "of its weights was another."
    )
    how = (
        '"Before" is the run as vizer_rl evaluates it, "after" are these files under plain '
        "transformers."
    )
    return f"{parity.sentence()} {how} {base}"


def _licences(run: Run, base: Base, licence: str) -> str:
    names = {f"policy, {base.name}": licence}
    names |= {f"scorer {_public(k)}": v for k, v in scorer_licences(run).items()}
    return "\n".join(f"- {name}: {text}" for name, text in names.items())


def _public(value: Any) -> str:
    """A setting as a card may show it: of a path its last part, of a URL no password."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_public(k)}: {_public(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_public, value)) + "]"
    text = masked(printable(str(value)))
    kind, colon, path = text.partition(":")
    if colon and path[:1] in ("/", "~", "."):
        return f"{kind}:{PurePath(path).name}"
    return PurePath(text).name if text[:1] in "/~." else text


def _list(lines: list[str]) -> Iterator[str]:
    if lines:
        yield "\n".join(f"- {printable(line)}" for line in lines)


def _table(rows: list[tuple[str, ...]]) -> str:
    """Rows as a table of Markdown; the first is its head."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])
