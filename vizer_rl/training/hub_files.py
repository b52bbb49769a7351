"""Hub files of a run: what it loads that does not ship with the package, and what is here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import ModelInfo
from rich.table import Table

from rewards.lib.text import ENGLISH

from ..config.schema import Run
from ..errors import UserError

HUB_SECONDS = 10.0  # until the hub counts as out of reach
SPACY = ENGLISH[0]
TEXTS = {".json", ".jinja", ".txt", ".model"}
Choice = Callable[[Sequence[str]], list[str]]  # of a repository's files those that are needed


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; size, stored: bytes in full and bytes here, in the file `part`."""

    name: str
    size: int
    stored: int
    part: Path
    sha256: str | None  # of large files alone


@dataclass(frozen=True)
class FileSet:
    """What a part of a run is loaded from; files: None where the hub cannot be asked."""

    title: str
    source: str
    where: str
    state: str  # "here", "partly" or "missing"
    size: int | None
    files: list[HubFile] | None = None
    revision: str = ""

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return sum(file.size - file.stored for file in self.files or ())


def hub_parts(run: Run) -> list[tuple[str, str, Choice]]:
    """(title, repository, choice of its files) of all that a run loads from the hub."""
    parts = list[tuple[str, str, Choice]]()
    model = run.policy.model
    if model != "embedded" and not Path(model).expanduser().is_dir():
        parts.append(("policy", model, policy_files))
    encoders = {run.scorer.train: "scorer.train"}
    for key, settings in run.rewards.items():
        for name in (settings.get("encoder"), settings.get("neighbours")):
            if isinstance(name, str) and name != "policy":
                encoders.setdefault(name, f"rewards.{key}")
    encoders.setdefault(run.scorer.heldout, "scorer.heldout")
    for name, title in encoders.items():
        if not name.startswith(("embedded:", "local-dir:")):
            parts += [(title, *part) for part in _open_clip_parts(*name.split("/", 1))]
    return parts


def _open_clip_parts(architecture: str, tag: str) -> Iterator[tuple[str, Choice]]:
    """The repository of a tag's weights, and that of its tokenizer where it has one."""
    from open_clip import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    repository, name = get_pretrained_cfg(architecture, tag)["hf_hub"].rsplit("/", 1)
    name = name or constants.PYTORCH_WEIGHTS_NAME.replace("pytorch", "open_clip_pytorch")
    safe = ["open_clip_model.safetensors"] * name.startswith("open_clip_pytorch")
    ordered = [*safe, f"{PurePosixPath(name).stem}.safetensors", name]  # open_clip's own order
    yield repository, lambda names: [n for n in ordered if n in names][:1]
    text = (get_model_config(architecture) or {})["text_cfg"]
    if tokenizer := text.get("hf_tokenizer_name") or text.get("hf_model_name"):
        yield tokenizer, tokenizer_files


def tokenizer_files(names: Sequence[str]) -> list[str]:
    """The configurations and tokenizer of a repository, as far as they lie at its top."""
    return [n for n in names if "/" not in n and PurePosixPath(n).suffix in TEXTS]


def policy_files(names: Sequence[str]) -> list[str]:
    """What transformers loads a policy from: safetensors, else torch's own, and the small files."""
    starts, ends = ("model", "pytorch_model"), (".safetensors", ".bin")
    kinds = [
        [n for n in names if n.startswith(start) and n.endswith(end)]
        for start, end in zip(starts, ends, strict=True)
    ]
    return [*tokenizer_files(names), *(kinds[0] or kinds[1])]


def survey(run: Run) -> list[FileSet]:
    """What a run needs from the hub and of spaCy, and how much of it is here."""
    sets = [_file_set(*part) for part in hub_parts(run)]
    taggers = [s.get("tagger") for s in run.rewards.values()]
    if "spacy" in taggers:
        state = "here" if any(map(find_spec, ENGLISH)) else "missing"
        how = "the environment" if state == "here" else "pip install 'vizer_rl[grounding]'"
        sets.append(FileSet("tagger", SPACY, how, state, None))
    return sets


def _file_set(title: str, repository: str, choose: Choice) -> FileSet:
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    info = _model_info(title, repository)
    if info is None:
        return _offline_set(title, repository, folder, choose)
    names = choose([s.rfilename for s in info.siblings or ()])
    files = []
    for sibling in info.siblings or ():
        if sibling.rfilename in names:
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            blob = folder / "blobs" / str(sha256 or sibling.blob_id)
            snapshot = folder / "snapshots" / str(info.sha) / sibling.rfilename
            part, size = blob.with_name(f"{blob.name}.part"), sibling.size or 0
            whole = blob.is_file() or snapshot.is_file()
            stored = size if whole else part.stat().st_size if part.is_file() else 0
            files.append(HubFile(sibling.rfilename, size, min(stored, size), part, sha256))
    if not files:
        raise UserError(f"{title}: '{repository}' on the hub holds no weights that can be loaded")
    stored = sum(file.stored for file in files)
    size = sum(file.size for file in files)
    state = "here" if stored == size else "partly" if stored else "missing"
    return FileSet(title, repository, str(folder), state, size, files, str(info.sha))


def _model_info(title: str, repository: str) -> ModelInfo | None:
    """What the hub says of a repository; None where it is out of reach; else UserError."""
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        return api.model_info(repository, files_metadata=True, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{title}: '{repository}' is not on the hub, or not for you: correct the name, or log "
            "in with `hf auth login`"
        ) from error
    except (HTTPError, OSError):  # no network, a failing server, HF_HUB_OFFLINE
        return None


def _offline_set(title: str, repository: str, folder: Path, choose: Choice) -> FileSet:
    """What the cache holds of a repository, by its own listing of the weights."""
    reference = folder / "refs" / "main"
    revision = reference.read_text().strip() if reference.is_file() else ""
    snapshot = folder / "snapshots" / revision
    present = [
        path.relative_to(snapshot).as_posix()
        for path in (sorted(snapshot.rglob("*")) if revision else ())
        if path.is_file()
    ]
    names = choose(present)
    shards = set[str]()
    for index in (name for name in names if name.endswith(".index.json")):
        shards |= set(json.loads((snapshot / index).read_bytes())["weight_map"].values())
    weights = [n for n in names if PurePosixPath(n).suffix not in TEXTS]
    enough = bool(names if choose is tokenizer_files else weights) and shards <= set(present)
    if choose is policy_files:
        enough &= "config.json" in names
    state = "here" if enough else "partly" if names else "missing"
    size = sum((snapshot / name).stat().st_size for name in names) if enough else None
    return FileSet(title, repository, str(folder), state, size)


def size_text(count: int | None) -> str:
    """Bytes as MB or GB; None: the hub was not there to ask."""
    if count is None:
        return "size unknown offline"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def table(run: Run) -> Table | str:
    """What a run loads that does not ship with the package: size, state, place."""
    rows = Table(box=None, pad_edge=False)
    for column in ("part", "from", "size", "here", "where"):
        rows.add_column(column, overflow="fold")
    for files in (sets := survey(run)):
        size = "–" if files.source == SPACY else size_text(files.size)
        lacks = (
            f", lacks {size_text(files.missing)}" if files.state == "partly" and files.files else ""
        )
        rows.add_row(files.title, files.source, size, files.state + lacks, files.where)
    return rows if sets else "downloads: none, all that it loads is on this machine"
