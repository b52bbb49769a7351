"""Truth on the way: facts of the held-out scenes under the adapter of every checkpoint of a run."""

from pathlib import Path

from peft import PeftModel

from vizer_rl.config.run_dir import read_heldout, read_run
from vizer_rl.data.lazy import LazyImages
from vizer_rl.data.scenes import truth_of
from vizer_rl.data.sources import ImageFolder
from vizer_rl.evaluation.metrics import scene_facts
from vizer_rl.files import checkpoints
from vizer_rl.policy import captioner, load
from vizer_rl.policy.shared_prefix.obstacles import build_vision_cache

Truth = dict[str, float]  # mean of each fact metric over the held-out scenes


def truth_curve(folder: Path) -> dict[int, Truth]:
    """Of the greedy captions by step: the base's under 0, then each checkpoint's.

    The policy is loaded once, an adapter a checkpoint. No run reads this truth.
    """
    run, heldout = read_run(folder), read_heldout(folder)
    source = Path(heldout["source"])
    truth = scene_facts.read_truth(truth_of(source), heldout["ids"], "held-out")
    images = ImageFolder(heldout["source"], source, heldout["ids"], {})
    policy = run.policy.model_dump(exclude={"instruct", "lora"})
    model, processor = load.load_policy(run.family, **policy)
    saved = {int(p.name.rpartition("-")[2]): p for p in reversed(checkpoints(folder))}
    first, *others = saved
    adapted = PeftModel.from_pretrained(model, str(saved[first]), adapter_name=str(first))
    for step in others:
        adapted.load_adapter(str(saved[step]), adapter_name=str(step))
    adapted.eval()
    cache = build_vision_cache(adapted, processor, run.family, **run.engine.model_dump())

    def facts() -> Truth:
        captions = captioner.caption(
            adapted,
            processor,
            LazyImages(images.load, images.ids),
            run.data.prompt,
            max_new_tokens=int(run.train["max_completion_length"]),
            vision_cache=cache,
        )
        columns = scene_facts.columns([c.text for c in captions], [truth[i] for i in images.ids])
        return {name: float(values.mean()) for name, values in columns.items()}

    with adapted.disable_adapter():
        curve = {0: facts()}
    for step in saved:
        adapted.set_adapter(str(step))
        curve[step] = facts()
    return curve
