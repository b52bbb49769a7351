"""A run with an adapter that nobody trained, for tests of captions of image sets."""

import json
import shutil

import torch

from vizer_rl.config.schema import Data, Policy, Run, Scorer
from vizer_rl.data import scenes as draw
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.load import load_policy
from vizer_rl.policy.lora import lora_config

TOKENS = 24


def draw_photos(folder, count, start=1_000_000):
    """Drawn scenes in a folder of their own, and their truth by name."""
    images = draw.write(folder.parent / f".drawn-{start}-{count}", start, count)
    shutil.copytree(images, folder)
    return json.loads((images.parent / "truth" / "scenes.json").read_text())


def write_run(directory, photos, truth):
    """runs/NAME of the embedded SmolVLM: an adapter of small random weights, classes of words."""
    from peft import get_peft_model

    model, _ = load_policy("smolvlm", "embedded", dtype="float32")
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config(FAMILIES["smolvlm"].lora, 4, 8, 0.0))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    adapted.save_pretrained(str(directory / "adapter"))
    run = Run(
        family="smolvlm",
        profile="scenes",
        name=directory.name,
        policy=Policy(model="embedded", dtype="float32"),
        data=Data(images=str(photos)),
        scorer=Scorer(train="embedded:a", heldout="embedded:b"),
        rewards={"length": {"weight": 1.0, "shortest": 3, "longest": 20}},
        train={"max_completion_length": TOKENS, "num_generations": 8},
    )
    (directory / "config.yaml").write_text(run.to_yaml())
    texts = [t["caption"] for t in truth.values()]
    lines = [json.dumps({"base": text, "trained": text}) for text in texts]
    (directory / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return run
