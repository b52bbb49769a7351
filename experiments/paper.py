"""The table of ViZer's paper, on the same sets and with the same metrics: one resumable command.

    make paper IMAGES=/openimages COCO=/coco KARPATHY=/dataset_coco.json CC3M=/cc3m
    .venv/bin/python -m experiments.paper --images … [--family smolvlm] [--only ViZer_G …]
        [--set section.key=value …] [--profile scenes] [--limit 100] [--table]

For those with a GPU and a hub: none of it was run with the real weights. It trains what runs/ lacks
on IMAGES, evaluates it on Karpathy's COCO test split and on CC3M's validation images, and prints
published and measured rows; --table only prints. What the paper leaves open, and what is chosen:

CLIP       not named: ViT-B-32-quickgelu/openai; CLIPS is its cosine, "A photo depicts" before it.
COCO       the split is not named: Karpathy's test images, with all their captions.
ViZer_GT   learns its mapper on COCO's training images and captions, and trains on these images too
           (the paper: on COCO and CC3M, then on OpenImages): a caption file is of training images.
RL         the reward of its RL baseline is not described: here it is CLIP's cosine alone.
steps      the run file's, the same for all rows (the paper: one epoch, of how many is not said).
"""

import json
import random
import subprocess
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from experiments import runner
from vizer_rl.data.sources import find_files
from vizer_rl.errors import path_not_found

CLIP = "ViT-B-32-quickgelu/openai"
CLIP_WEIGHT = 2.5  # CLIPScore is so many times the cosine
DATA = Path("data/paper")
CC3M_IMAGES = 5000
VIZER = ("algorithm=vizer", "train.beta=0", "train.weight_decay=0.01")
OTHERS = ("self_retrieval", "alignment", "repetition", "length")  # rewards of the run files
GT = "ViZer_GT"
TRAINED = {
    "RL baseline": [f"rewards.{name}=null" for name in OTHERS],
    GT: [*VIZER, "mapper.source=captions", f"mapper.captions={DATA / 'coco-train.jsonl'}"],
    "ViZer_G": [*VIZER, "mapper.images=10000"],
    "GRPO, ours": [],
}
MODELS = {"smolvlm": "SmolVLM-Base", "qwen2vl": "Qwen2-VL"}
EVALUATED = {"coco": ("bleu", "cider_d", "clip_score"), "cc3m": ("clip_score",)}
METRICS = {  # column: the set, the metric of eval.json, what it is multiplied by
    "COCO BLEU-1": ("coco", "bleu_1", 1.0),
    "COCO CIDEr": ("coco", "cider_d", 1.0),
    "COCO CLIPS": ("coco", "clip_score", 1 / CLIP_WEIGHT),
    "CC3M CLIPS": ("cc3m", "clip_score", 1 / CLIP_WEIGHT),
}
PUBLISHED = {  # Byun et al., arXiv 2510.12931, by way of a note on the paper
    ("smolvlm", "Base"): ("0.3784", "0.276", "0.2529", "0.2617"),
    ("smolvlm", "RL baseline"): ("0.3623", "0.255", "0.2506", "0.2604"),
    ("smolvlm", GT): ("0.5564", "0.505", "0.2569", "0.2647"),
    ("smolvlm", "ViZer_G"): ("0.4081", "0.337", "0.2571", "0.2636"),
    ("qwen2vl", "Base"): ("0.5249", "0.521", "0.2693", "0.2766"),
    ("qwen2vl", "ViZer_G"): ("0.5373", "0.470", "0.2744", "0.2774"),
}


def directory(family: str, row: str) -> Path:
    return runner.directory("paper", family, runner.slug(row.replace(",", "")))


def link(files: Mapping[str, Path], folder: Path) -> None:
    """A folder of links to these files, by the names they get."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())


def prepare_coco(karpathy: Path, coco: Path, limit: int | None = None) -> None:
    """DATA/coco: the test images of Karpathy's split (`dataset_coco.json`) and references.json."""
    images = [i for i in json.loads(karpathy.read_text())["images"] if i["split"] == "test"][:limit]
    files = {i["filename"]: coco / i["filepath"] / i["filename"] for i in images}
    if absent := [path for path in files.values() if not path.is_file()]:
        raise SystemExit(
            f"{len(absent)} of {len(files)} test images of {karpathy} are not in {coco}, "
            f"the first: {absent[0]}"
        )
    link(files, DATA / "coco")
    references = {i["filename"]: [s["raw"] for s in i["sentences"]] for i in images}
    (DATA / "coco" / "references.json").write_text(json.dumps(references))


def prepare_cc3m(folder: Path, limit: int | None = None) -> None:
    """DATA/cc3m: up to CC3M_IMAGES of a folder of CC3M's validation images; captions are not read.

    img2dataset leaves them as 00000/000000000.jpg, beside a .json and a .txt of each.
    """
    root, files = find_files(folder)
    chosen = sorted(random.Random(0).sample(files, min(limit or CC3M_IMAGES, len(files))))
    link({"-".join(path.relative_to(root).parts): path for path in chosen}, DATA / "cc3m")


def prepare_pairs(coco: Path) -> None:
    """The captions of COCO's training images (`captions_train2014.json`) as a caption file."""
    content = json.loads((coco / "annotations" / "captions_train2014.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    first = {a["image_id"]: a["caption"] for a in reversed(content["annotations"])}
    lines = [{"image_id": names[i], "caption": text.strip()} for i, text in sorted(first.items())]
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / "coco-train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def missing(flags: Namespace) -> list[str]:
    """Why nothing can be run here, one sentence each."""
    why = []
    for name in ("images", "coco", "karpathy", "cc3m"):
        path = getattr(flags, name)
        if path is None:
            why.append(f"{name.upper()}=PATH (--{name}) is not given")
        elif not path.exists():
            why.append(f"{name.upper()}: {path_not_found(path)}")
    if flags.profile == "full" and not torch.cuda.is_available():
        why.append("there is no CUDA device: on a CPU a step of a real model takes minutes")
    return why


def train(family: str, row: str, flags: Namespace) -> None:
    """Train a row on IMAGES, ViZer_GT on COCO's training images; unless it is done."""
    folder = directory(family, row)
    if runner.finished([folder], "eval.json"):
        return
    images = flags.coco / "train2014" if row == GT else flags.images
    file = str(Path(__file__).parent / f"{family}.yaml")
    words = [f"profile={flags.profile}", f"name={folder.name}", f"data.images={images}"]
    runner.command("train", file, *words, *TRAINED[row], *flags.set, "--overwrite")


def evaluate(family: str, row: str, clip: str) -> None:
    """Evaluate a trained row on both sets, unless it is done."""
    folder = directory(family, row)
    for name, metrics in EVALUATED.items():
        if not runner.finished([folder / f"images-{name}"], "eval.json"):
            words = ["--run", folder.name, "--images", str(DATA / name), "--clip", clip]
            runner.command("evaluate", *words, "--no-controls", "--metrics", *metrics)


def make(flags: Namespace, rows: Iterable[str]) -> list[str]:
    """Make what is missing of these rows; a sentence for each that failed."""
    failed = []
    prepare_coco(flags.karpathy, flags.coco, flags.limit)
    prepare_cc3m(flags.cc3m, flags.limit)
    if GT in rows:
        prepare_pairs(flags.coco)
    for family in flags.family:
        for row in rows:
            try:
                train(family, row, flags)
                evaluate(family, row, flags.clip)
            except subprocess.CalledProcessError as error:  # it has said why
                failed.append(f"{MODELS[family]}, {row}: ended with code {error.returncode}")
    return failed


def measured(family: str, row: str) -> list[str] | None:
    """The cells of a row that was evaluated, "Base" being the base of any; None if it was not."""
    rows = [row] if row in TRAINED else list(TRAINED)
    for folder in (directory(family, name) for name in rows):
        sets = {name: folder / f"images-{name}" for name in EVALUATED}
        if len(runner.finished(sets.values(), "eval.json")) == len(sets):
            side = "trained" if row in TRAINED else "base"
            results = {name: runner.read(path, "eval.json")[side] for name, path in sets.items()}
            return [
                runner.interval([{k: v * by for k, v in results[name][metric].items()}], 4)
                for name, metric, by in METRICS.values()
            ]
    return None


def table(families: Iterable[str], clip: str = CLIP) -> str:
    """The published rows, quoted, and those measured here, in Markdown."""
    rows = []
    for family in families:
        for row in ("Base", *TRAINED):
            if quoted := PUBLISHED.get((family, row)):
                rows.append([row, MODELS[family], "quoted", *quoted])
            if cells := measured(family, row):
                rows.append([row, MODELS[family], "measured", *cells])
    note = (
        "Quoted: arXiv 2510.12931, by way of a note on the paper; its CLIP is not named. Measured: "
        f"CLIPS under {clip}, mean and 95 % bootstrap interval over images."
    )
    return runner.markdown(["method", "model", "", *METRICS], rows) + f"\n\n{note}"


def main() -> None:
    parser = runner.parser(__doc__, TRAINED)
    for name, text in {
        "images": "images to train on, as OpenImages V7",
        "coco": "COCO 2014: train2014, val2014, annotations",
        "karpathy": "dataset_coco.json, Karpathy's split",
        "cc3m": "validation images of CC3M",
    }.items():
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=text)
    parser.add_argument("--family", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--profile", choices=("full", "scenes"), default="full")
    parser.add_argument("--clip", default=CLIP, metavar="ARCHITECTURE/TAG")
    parser.add_argument("--limit", type=int, metavar="N", help="images of each set, for a trial")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value")
    flags = parser.parse_args()
    why = [] if flags.table else missing(flags)
    if not flags.table and not why:
        why = make(flags, flags.only or [*TRAINED])
    print(table(flags.family, flags.clip))
    if why:
        raise SystemExit("\nNot run here:\n" + "\n".join(f"- {sentence}" for sentence in why))


if __name__ == "__main__":
    main()
