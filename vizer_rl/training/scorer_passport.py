"""`vizer-rl scorer`: the images, the captions and the models of a scorer's passport, loaded."""

from __future__ import annotations

from pathlib import Path

from rewards import Bank

from ..audit.audit import isolated_rng
from ..audit.judges import Judges, RunParts
from ..audit.passport import Captioned, passport
from ..audit.report_console import show_passport
from ..audit.sample import GROUP_SIZE, caption_images, chosen_images
from ..config.schema import Policy, Run, Scorer
from ..config.validate_files import scorer_problems
from ..data import caption_file
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..errors import UserError
from ..evaluation.tables import PlainConsole
from ..policy.load import device
from ..scoring.clip import OpenClip
from . import assemble
from .splits import image_sets

IMAGES = 128
MIN_IMAGES = 8  # fewer say nothing
BUILT_IN = Run(  # without a run file: the policy and the scenes that ship with the package
    family="smolvlm",
    profile="scenes",
    name="built-in",
    policy=Policy(model="embedded", dtype="float32"),
    scorer=Scorer(train="embedded:a", heldout="embedded:b"),
    rewards={},
    train={"max_completion_length": 32, "num_generations": GROUP_SIZE},
)


def scorer_passport(
    name: str, run: Run | None = None, images: str | None = None, captions: str | None = None
) -> None:
    """Print the passport of the scorer of this name.

    run: its images and policy; images: where there is no run, a source of images, None the scenes
    that ship, and their policy; captions: a caption file, None the policy's own. UserError where
    the scorer is not there, or too few captions are fit to be attacked.
    """
    for problem in scorer_problems(name):
        raise UserError(f"scorer {problem}")
    console = PlainConsole() if PlainConsole().is_terminal else PlainConsole(width=100)
    if run is None and images is None:
        run = BUILT_IN
    if run is None and captions is None:
        raise UserError(
            "whose captions? Give a run file, whose policy captions the images, or --captions FILE"
        )
    folder = image_sets(run, console)[0] if run else ImageFolder.index(str(images))
    components = assemble.load_components(_with(run, name), []) if run else None
    if captions is not None:
        captioned = _given(folder, Path(captions))
    else:
        assert run is not None
        assert components is not None
        captioned = _own(run, components, folder, name)
    if len(captioned.ids) < MIN_IMAGES:
        raise UserError(
            f"{len(captioned.ids)} images have a caption that can be attacked; needed are "
            f"{MIN_IMAGES}"
        )
    # float32 on every device: the differences that matter are as small as half precision's rounding
    policy = components.reference if components else None
    show_passport(console, passport(OpenClip(name, device()), captioned, policy))


def _with(run: Run, name: str) -> Run:
    """The run with this scorer for training, and another one that chooses captions."""
    others = [s for s in (run.scorer.heldout, run.scorer.train) if s != name]
    if not others:
        raise UserError(
            f"scorer.train and scorer.heldout are both {name}: set one of them to another, which "
            "chooses the captions that are attacked"
        )
    return run.model_copy(update={"scorer": Scorer(train=name, heldout=others[0])})


def _given(folder: ImageFolder, path: Path) -> Captioned:
    """Up to IMAGES images that a caption file names, with its captions."""
    captions = caption_file.read(path, folder.ids)
    ids = chosen_images(sorted(captions), IMAGES)
    images = LazyImages(folder.load, ids)
    return Captioned(ids, images, [[captions[i]] for i in ids], True, f"captions of {path}")


def _own(run: Run, components: assemble.Components, folder: ImageFolder, name: str) -> Captioned:
    """Up to IMAGES images with captions of the policy, the one first that an audit would attack."""
    other = _with(run, name).scorer.heldout
    scoring, ids = components.reward_functions, chosen_images(folder.ids, IMAGES)
    parts = RunParts(
        name=run.name,
        directory=run.directory,
        seed=run.seed,
        prompt=run.data.prompt,
        temperature=float(run.train.get("temperature", 1.0)),
        max_completion_length=int(run.train["max_completion_length"]),
        aggregation="",
        scorers=run.scorer.model_dump(),
        drawn_scenes=run.data.images is None,
        images=folder,
        reference=components.reference,
        heldout=scoring.encoders(other),
        scoring=scoring,
        bank=Bank([], [], scoring.batch([], [], [], []), Path()),  # no reward, nothing to prepare
        vision_cache=components.vision_cache,
    )
    with isolated_rng(run.seed, device()):
        sample = caption_images(Judges(parts), ids)
    kept = sample.attacked
    return Captioned(
        [ids[n] for n in kept],
        LazyImages(folder.load, [ids[n] for n in kept]),
        [[sample.original(n), *sample.captions[n], sample.greedy_captions[n]] for n in kept],
        False,
        f"captions of the policy ({run.policy.model}), chosen by {other}",
    )
