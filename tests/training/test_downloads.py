"""Downloads of a run against a local hub: sizes, what is here, the disk, parts, no network."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from rich.console import Console

from vizer_rl import cli
from vizer_rl.config.load import load_run
from vizer_rl.errors import UserError
from vizer_rl.training import downloads, hub_files

ROOT = Path(__file__).parent.parent.parent
POLICY, SCORER = "HuggingFaceTB/SmolVLM-Base", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
SHA = "0123456789abcdef0123456789abcdef01234567"
BIG = bytes(range(256)) * 4000  # 1.024 MB
FILES = {
    POLICY: {
        "config.json": b"{}",
        "README.md": b"none of ours",
        "onnx/model.onnx": b"none of ours",
        "model.safetensors": BIG,
        "pytorch_model.bin": b"the same again",
    },
    SCORER: {
        "open_clip_model.safetensors": BIG[::-1],
        "open_clip_pytorch_model.bin": b"the same again",
    },
}


@dataclass
class Hub:
    """What the local hub is to do, and what it was asked for."""

    files: dict = field(default_factory=lambda: {r: dict(f) for r, f in FILES.items()})
    stop_after: int | None = None  # bytes of a large file, then no more of it is served
    down: bool = False
    gets: list = field(default_factory=list)


def is_large(name):
    return name.endswith((".safetensors", ".bin"))


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0].strip("/")
        if self.hub.down:
            return self.head(500, Content_Length=0)
        if path.startswith("api/models/"):
            return self.listing(path.removeprefix("api/models/"))
        repository, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        data = self.hub.files.get(repository, {}).get(name)
        if data is None:
            return self.head(404, X_Error_Code="EntryNotFound", Content_Length=0)
        asked = self.headers.get("Range")
        if asked and self.hub.stop_after:
            return self.head(503, Content_Length=0)
        start = int(asked.split("=")[1].split("-")[0]) if asked else 0
        facts = {"ETag": f'"{etag(name, data)}"', "X_Repo_Commit": SHA}
        if asked:
            facts["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(206 if asked else 200, Content_Length=len(data) - start, **facts)
        if body:
            self.hub.gets.append((repository, name, start))
            cut = self.hub.stop_after if is_large(name) else None
            self.wfile.write(data[start:][:cut])
            if cut is not None:
                self.close_connection = True
        return None

    def listing(self, repository):
        repository = repository.partition("/revision/")[0]
        if repository not in self.hub.files:
            return self.head(404, X_Error_Code="RepoNotFound", Content_Length=0)
        siblings = []
        for name, data in self.hub.files[repository].items():
            entry = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if is_large(name):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 100}
            siblings.append(entry)
        text = json.dumps({"id": repository, "sha": SHA, "siblings": siblings}).encode()
        self.head(200, Content_Length=len(text), Content_Type="application/json")
        self.wfile.write(text)
        return None


def etag(name, data):
    return (hashlib.sha256 if is_large(name) else hashlib.sha1)(data).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    handler = type("LocalHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what may be lost
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"1")
    return load_run(ROOT / "experiments/smolvlm.yaml", overrides(tmp_path))


def overrides(tmp_path):
    scorers = [f"scorer.{key}=ViT-L-14/datacomp_xl_s13b_b90k" for key in ("train", "heldout")]
    return [
        "profile=full",
        f"data.images={tmp_path / 'images'}",
        f"policy.model={POLICY}",
        *scorers,
    ]


def states(run):
    return {files.source: (files.state, files.size) for files in hub_files.survey(run)}


def cached(repository, name):
    path = try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE)
    return Path(path).read_bytes() if isinstance(path, str) else None


def test_sizes_come_first_and_only_what_is_needed_is_fetched(hub, run):
    enable_progress_bars()  # other tests have loaded policies, after which none are shown
    sentences = []
    assert states(run) == {POLICY: ("missing", 1_024_002), SCORER: ("missing", 1_024_000)}
    downloads.fetch(run, sentences.append)
    assert sentences[0] == f"to download: 2.0 MB into {constants.HF_HUB_CACHE}"
    assert sentences[1] == f"  policy: {POLICY}, 1.0 MB of 1.0 MB"
    assert [s for s in sentences if s.startswith("downloading")] == [
        f"downloading {POLICY} model.safetensors, 1.0 MB",
        f"downloading {SCORER} open_clip_model.safetensors, 1.0 MB",
    ]
    wanted = {"config.json", "model.safetensors", "open_clip_model.safetensors"}
    assert {name for _, name, _ in hub.gets} == wanted
    assert cached(POLICY, "model.safetensors") == BIG
    assert cached(SCORER, "open_clip_model.safetensors") == BIG[::-1]
    assert {state for state, _ in states(run).values()} == {"here"}

    hub.gets.clear()
    sentences.clear()
    downloads.fetch(run, sentences.append)
    assert not hub.gets
    assert not sentences  # nothing to say where nothing is missing
    assert not are_progress_bars_disabled()


def test_a_download_that_broke_off_goes_on_where_it_stopped(hub, run):
    hub.stop_after = 300_000
    with pytest.raises(UserError, match=r"broke off .*: start again, it goes on where it stopped"):
        downloads.fetch(run, lambda sentence: None)
    policy = next(files for files in hub_files.survey(run) if files.source == POLICY)
    stored = policy.size - policy.missing
    assert policy.state == "partly"
    assert 0 < stored <= 300_002
    hub.stop_after = None
    hub.gets.clear()
    sentences = []
    downloads.fetch(run, sentences.append)
    starts = {name: start for _, name, start in hub.gets}
    assert 0 < starts["model.safetensors"] <= 300_000
    assert any(s.endswith("MB on") and "model.safetensors" in s for s in sentences)
    assert cached(POLICY, "model.safetensors") == BIG


def test_a_part_that_does_not_fit_its_file_is_noticed_and_deleted(hub, run):
    file = next(f for f in hub_files.survey(run)[0].files if f.sha256)
    file.part.parent.mkdir(parents=True)
    file.part.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="came broken and was deleted: start again"):
        downloads.fetch(run, lambda sentence: None)
    assert not file.part.exists()
    downloads.fetch(run, lambda sentence: None)
    assert cached(POLICY, "model.safetensors") == BIG


def test_a_disk_without_room_is_one_sentence_before_anything_is_fetched(hub, run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    with pytest.raises(UserError, match=r"need 2\.0 MB, but .* has 1\.5 MB free.*HF_HOME"):
        downloads.fetch(run, lambda sentence: None)
    assert not hub.gets
    file = next(f for f in hub_files.survey(run)[0].files if f.sha256)
    file.part.parent.mkdir(parents=True)
    file.part.write_bytes(BIG[:700_000])  # what is here needs no room any more
    downloads.fetch(run, lambda sentence: None)
    assert cached(POLICY, "model.safetensors") == BIG


@pytest.mark.parametrize("why", ["offline", "down"])
def test_without_the_hub_the_cache_is_enough_or_one_sentence_says_what_is_missing(
    hub, run, why, monkeypatch
):
    def cut():
        hub.down = why == "down"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", why == "offline")

    cut()
    assert states(run) == {POLICY: ("missing", None), SCORER: ("missing", None)}
    with pytest.raises(UserError, match=f"cannot be reached, and not here: {POLICY} ") as error:
        downloads.fetch(run, lambda sentence: None)
    assert "\n" not in str(error.value)
    for part in (SCORER, "HF_HUB_OFFLINE", "policy.model=/path", "PROFILE=scenes"):
        assert part in str(error.value)

    hub.down = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    downloads.fetch(run, lambda sentence: None)
    cut()
    sentences = []
    downloads.fetch(run, sentences.append)
    assert not sentences
    assert {state for state, _ in states(run).values()} == {"here"}
    snapshot = Path(constants.HF_HUB_CACHE) / "models--HuggingFaceTB--SmolVLM-Base/snapshots" / SHA
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert states(run)[POLICY][0] == "partly"  # a shard is missing


def test_a_repository_that_is_not_there_is_one_sentence(hub, run):
    del hub.files[POLICY]
    with pytest.raises(UserError, match=f"policy: '{POLICY}' is not on the hub"):
        downloads.fetch(run, lambda sentence: None)


def test_a_run_of_embedded_models_asks_no_hub(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scenes = load_run(ROOT / "experiments/smolvlm.yaml", ["profile=scenes"])
    assert hub_files.survey(scenes) == []
    downloads.fetch(scenes, pytest.fail)
    assert "none" in hub_files.table(scenes)


def test_encoders_of_rewards_tokenizers_and_the_tagger_are_listed(hub, run):
    more = {"self_retrieval": {"encoder": "ViT-B-16-SigLIP/webli", "neighbours": "policy"}}
    more["claim_check"] = {"tagger": "spacy"}
    parts = hub_files.hub_parts(run.model_copy(update={"rewards": more}))
    assert [(title, source) for title, source, _ in parts] == [
        ("policy", POLICY),
        ("scorer.train", SCORER),
        ("rewards.self_retrieval", "timm/ViT-B-16-SigLIP"),
        ("rewards.self_retrieval", "timm/ViT-B-16-SigLIP"),  # weights, tokenizer
    ]
    names = ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "tokenizer.json"]
    assert parts[2][2](names) == ["open_clip_model.safetensors"]
    assert parts[3][2](names) == ["tokenizer.json"]
    hub.down = True
    listed = {f.source for f in hub_files.survey(run.model_copy(update={"rewards": more}))}
    assert "en_core_web_sm" in listed


def test_the_doctor_lists_what_a_run_file_needs(hub, run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("vizer_rl.doctor.Console", lambda **_: Console(width=200))
    words = ["doctor", str(ROOT / "experiments/smolvlm.yaml"), *overrides(tmp_path)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert POLICY in out
    assert "missing" in out
    assert "1.0 MB" in out
    downloads.fetch(run, lambda sentence: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if POLICY in line]
    assert " here " in rows[0]
    assert cli.main(["doctor", "absent.yaml"]) == 2
    assert "absent.yaml" in capsys.readouterr().err
