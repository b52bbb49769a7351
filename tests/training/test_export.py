"""Export: the run's captions from plain transformers and PEFT, a card, an upload; nothing half.

The runs are made by hand, with an adapter of random weights: no training is needed for them.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file

import vizer_rl
from vizer_rl import cli
from vizer_rl.assets import ASSETS
from vizer_rl.config.load import load_run
from vizer_rl.config.run_dir import read_run
from vizer_rl.data import scenes
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import UserError
from vizer_rl.files import add_checksums, damage
from vizer_rl.policy import load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.load import load_policy
from vizer_rl.policy.lora import WEIGHTS, lora_config
from vizer_rl.policy.shared_prefix.obstacles import build_vision_cache
from vizer_rl.policy.weights_hash import content_key
from vizer_rl.training import export, export_base, export_hub, export_parity
from vizer_rl.training.export_base import base_of, base_settings
from vizer_rl.training.export_card import card
from vizer_rl.training.export_parity import Outputs, Parity, compare

from ..conftest import REPO
from ..run_directories import make_run

SECRET = "hf_plantedSecretOfTheExport0123456789"
DTYPES = {"smolvlm": "float32", "qwen2vl": "bfloat16"}
ONE = ["--images", "photo.jpg"]  # of the parity check: quick
EXPORTS = [("smolvlm", "adapter"), ("smolvlm", "merged"), ("qwen2vl", "merged")]


def finished_run(directory, family, dtype, heldout):
    """A run directory as training leaves it, its adapter random and strong."""
    from peft import get_peft_model

    make_run(directory, directory.parent / "pictures", count=8)
    settings = ["profile=scenes", f"policy.dtype={dtype}", "train.max_completion_length=10"]
    run = load_run(REPO / f"experiments/{family}.yaml", settings)
    (directory / "config.yaml").write_text(run.to_yaml())
    ids = sorted(path.name for path in heldout.glob("*.png"))
    listing = {"source": str(heldout), "ids": ids, "drawn": True}
    (directory / "heldout.json").write_text(json.dumps(listing))
    model, processor = load_policy(family, "embedded", dtype=dtype)
    environment = {"policy_hash": content_key(model, processor), "device": "cpu"}
    environment |= {"transformers": version("transformers"), "train_images": 80}
    (directory / "environment.json").write_text(json.dumps(environment))
    adapted = get_peft_model(model, lora_config(FAMILIES[family].lora, 4, 8, 0.0))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    adapted.save_pretrained(directory / "adapter")
    add_checksums(directory / "adapter")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run of each family, and their exports."""
    place = tmp_path_factory.mktemp("export")
    heldout = scenes.write(place / "scenes", 1_000_000, 8)
    shutil.copy(sorted(heldout.glob("*.png"))[3], place / "photo.png")
    Image.open(place / "photo.png").convert("RGB").save(place / "photo.jpg", quality=95)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HF_TOKEN", SECRET)
        for family, dtype in DTYPES.items():
            finished_run(place / "runs" / family, family, dtype, heldout)
        for family, kind in EXPORTS:
            words = ["export", "--run", family, "--to", kind, "--out", f"out/{family}-{kind}"]
            assert cli.main(words) == 0
    return place


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)


def refused(capsys, *words):
    """The one sentence that an export is refused with."""
    assert cli.main(["export", *words]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


PLAIN = """
import re, sys
sys.modules["vizer_rl"] = sys.modules["rewards"] = None  # importing them raises ImportError
for folder in sys.argv[1:]:
    blocks = re.findall(r"```python\\n(.*?)```", open(folder + "/README.md").read(), re.DOTALL)
    code = "".join(blocks).replace('FOLDER = "."', f"FOLDER = {folder!r}")
    exec(code, {})
"""


def test_the_cards_program_captions_as_the_run_where_vizer_rl_is_not(place):
    folders = [f"out/{family}-{kind}" for family, kind in EXPORTS]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *folders], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    photos = [str(place / "photo.jpg")]
    (small,) = vizer_rl.Captioner.from_run("runs/smolvlm")(photos)
    (qwen,) = vizer_rl.Captioner.from_run("runs/qwen2vl")(photos)
    assert done.stdout.splitlines() == [small, small, qwen]
    assert small != ""


def test_a_model_is_loaded_in_five_lines(place):
    text = (place / "out/smolvlm-adapter/README.md").read_text()
    loading = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    _folder, *lines = [line for line in loading.splitlines() if line]
    assert len(lines) == 5
    assert "vizer_rl" not in loading


@pytest.mark.parametrize(("family", "kind"), EXPORTS)
def test_parity_holds_and_is_in_card_and_record(place, family, kind):
    folder = place / "out" / f"{family}-{kind}"
    record = json.loads((folder / "export.json").read_text())
    parity = record["parity"]
    assert (record["run"], record["kind"]) == (f"{family}-scenes", kind)
    assert (parity["images"], parity["dtype"]) == (8, DTYPES[family])
    assert parity["same_captions"] + parity["ties"] == 8
    assert parity["logits"] <= parity["bound"]
    text = (folder / "README.md").read_text()
    assert f"Of 8 images {parity['same_captions']} captions are the same" in text
    assert "The base is the one it was trained on, by its hash." in text
    assert damage(folder) == ""


def test_merged_weights_differ_from_the_base_and_have_the_types_of_the_run(place):
    for family, dtype in DTYPES.items():
        merged = load_file(place / "out" / f"{family}-merged" / "model.safetensors")
        base = load_file(ASSETS / family / "model.safetensors")
        assert merged.keys() == base.keys()
        assert {w.dtype for w in merged.values()} == {getattr(torch, dtype)}
        changed = {k for k in base if not torch.equal(base[k].to(merged[k].dtype), merged[k])}
        assert changed
        assert all(re.search(r"_proj\.weight$", name) for name in changed)


def test_the_card_has_all_that_one_wants_to_know(place):
    text = (place / "out/smolvlm-adapter/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    for line in [
        "| held-out score | ",
        "data: drawn scenes, 80 to train on",
        "| self_retrieval | 1 |",
        "| length | 0.3 | shortest = 3, longest = 20 |",
        "Before training, verdict: warn.",
        "- warn: These may win.",
        "- step 60: reward rose 1.2 sd",
        "Not better throughout than the best control",
        "- policy, the small smolvlm policy that ships with vizer_rl: Apache-2.0",
        "- scorer embedded:b: Apache-2.0",
    ]:
        assert line in body, line
    (score,) = re.findall(r"\| held-out score \| (.*) \|", body)
    assert re.fullmatch(r"(?:\S+ \[\S+, \S+\](?: \| )?){3}", score)


def test_the_card_of_a_base_on_the_hub_or_of_the_users_own(place):
    run = read_run(place / "runs/smolvlm")
    parity = Parity(8, 8, 0, 0.0, 1e-4, "float32", "cpu")

    def written(model, kind="adapter"):
        settings = {"policy": run.policy.model_copy(update={"model": model})}
        other = run.model_copy(update=settings)
        text = card(other, place / "runs/smolvlm", kind, base_of(other), parity, False, {})
        return yaml.safe_load(text.split("---\n")[1]), text

    front, text = written("HuggingFaceTB/SmolVLM-Base")
    assert front["base_model"] == "HuggingFaceTB/SmolVLM-Base"
    assert (front["base_model_relation"], front["license"]) == ("adapter", "apache-2.0")
    assert "from_pretrained('HuggingFaceTB/SmolVLM-Base', dtype=\"float32\")" in text
    assert "The base was not compared" in text
    assert written("HuggingFaceTB/SmolVLM-Base", "merged")[0]["base_model_relation"] == "finetune"
    front, _ = written("Qwen/Qwen2.5-VL-3B-Instruct")
    assert (front["license"], front["license_name"]) == ("other", "qwen-research-license")
    assert "license" not in written("somebody/else")[0]
    mine = place / "licensed"
    mine.mkdir()
    (mine / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    front, text = written(str(mine), "merged")
    assert front["license"] == "mit"
    assert "- policy, the folder `licensed`: mit" in text
    assert str(mine) not in text


def test_a_card_shows_no_path_and_no_password_of_any_source(place):
    run = read_run(place / "runs/smolvlm")
    parity = Parity(8, 8, 0, 0.0, 1e-4, "float32", "cpu")
    images = {"/home/me/photos": 3, "stream:https://me:hf_secret@host/{0..9}.tar[train:20]": 1}
    rewards = {"length": {"weight": 1.0, "shortest": 3, "lists": ["~/mine/words.txt", "b"]}}
    data = run.data.model_copy(update={"images": images})
    other = run.model_copy(update={"data": data, "rewards": rewards})
    text = card(other, place / "runs/smolvlm", "adapter", base_of(run), parity, True, {})
    assert "data: `{photos: 3, stream:https://***@host/{0..9}.tar[train:20]: 1}`" in text
    assert "lists = [words.txt, b]" in text
    for secret in ("/home/me", "hf_secret", "mine/"):
        assert secret not in text


def test_a_base_of_four_bits_is_loaded_by_the_card_as_the_run_loads_it(place, capsys, monkeypatch):
    monkeypatch.setattr("vizer_rl.policy.quantise.find_spec", lambda name: True)
    run = read_run(place / "runs/smolvlm")
    train = run.policy.train.model_copy(update={"language": "qlora"})
    run = run.model_copy(update={"policy": run.policy.model_copy(update={"train": train})})
    _, processor = load_policy("smolvlm", "embedded", dtype="float32")
    settings = base_settings(run, processor, torch.float32)
    parity = Parity(8, 8, 0, 0.0, 1e-4, "float32", "cpu")
    text = card(run, place / "runs/smolvlm", "adapter", base_of(run), parity, True, settings)
    loading = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    given = []
    model = SimpleNamespace(from_pretrained=lambda *args, **kwargs: given.append(kwargs))
    monkeypatch.setattr("transformers.AutoModelForImageTextToText", model)
    monkeypatch.setattr("transformers.AutoProcessor", SimpleNamespace(from_pretrained=str))
    adapter = SimpleNamespace(eval=lambda: None)
    adapted = SimpleNamespace(from_pretrained=lambda *args: adapter)
    monkeypatch.setattr("peft.PeftModel", adapted)
    exec(loading, {})
    assert given[0]["device_map"] == "auto"
    assert given[0]["quantization_config"].to_dict() == settings["quantization_config"].to_dict()
    with pytest.raises(UserError, match="is quantised: merged weights would be rounded again"):
        export_base.check_not_quantised(run)


def test_no_path_of_this_machine_and_no_token_is_in_a_file(place):
    for family, kind in EXPORTS:
        for path, content in everything(place / "out" / f"{family}-{kind}").items():
            for secret in (str(REPO), str(place), SECRET):
                assert secret.encode() not in content, path


def test_a_folder_in_use_is_never_replaced_unasked(place, capsys):
    out = place / "out/smolvlm-merged"
    before = everything(out)
    words = ["--run", "smolvlm", "--to", "merged", "--out"]
    sentence = refused(capsys, *words, str(out))
    assert "holds an export of run 'smolvlm-scenes': --overwrite replaces it" in sentence
    assert everything(out) == before
    mine = place / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    for target in (mine, mine / "thesis.txt"):
        sentence = refused(capsys, *words, str(target), "--overwrite")
        assert "stays as it is: give another --out" in sentence
    assert "thesis.txt' is no folder" in refused(capsys, *words, str(mine / "thesis.txt/below"))
    assert [*everything(mine).values()] == [b"mine"]


def test_an_export_that_does_not_answer_as_the_run_does_is_not_kept(place, capsys, monkeypatch):
    original = export.write_adapter

    def damaged(base, adapter, folder):
        original(base, adapter, folder)
        weights = load_file(folder / WEIGHTS)
        save_file({name: 1.01 * w for name, w in weights.items()}, folder / WEIGHTS)

    monkeypatch.setattr(export, "write_adapter", damaged)
    words = ["--run", "smolvlm", "--to", "adapter", "--out", "out/broken", *ONE]
    sentence = refused(capsys, *words)
    assert "does not answer as the run does, so nothing is kept of it. Of 1 images" in sentence
    assert not [p for p in (place / "out").iterdir() if "broken" in p.name]


def outputs(captions, ids, logits):
    return Outputs([], "", captions, ids, [torch.tensor(rows) for rows in logits])


def test_a_caption_may_differ_at_a_tie_alone():
    rows = [[2.0, 0.0, -2.0], [0.0, 1.0, -1.0]]
    before = outputs(["a b"], [[0, 1]], [rows])
    assert compare(before, before, torch.float32).holds
    near = [[2.0, 0.0, -2.0], [1.0, 1.0 + 1e-5, -1.0]]
    tied = compare(outputs(["a b"], [[0, 1]], [near]), outputs(["a a"], [[0, 0]], [near]), F32)
    assert (tied.same_captions, tied.ties, tied.holds) == (0, 1, True)
    apart = compare(before, outputs(["a a"], [[0, 0]], [rows]), F32)
    assert (apart.ties, apart.holds) == (0, False)
    shorter = compare(before, outputs(["a"], [[0]], [rows]), F32)
    assert not shorter.holds


F32 = torch.float32


def test_the_logits_differ_by_the_root_mean_square_in_deviations():
    before = outputs(["a"], [[0]], [[[3.0, 0.0, -3.0]]])  # standard deviation 3
    after = outputs(["a"], [[0]], [[[3.0, 0.3, -3.0]]])  # of (0, .3, 0): sqrt(.09 / 3) = .1732
    parity = compare(before, after, torch.bfloat16)
    assert parity.logits == pytest.approx(0.3 / 3**0.5 / 3, rel=1e-4)
    assert not parity.holds
    lost = outputs(["a"], [[0]], [[[3.0, float("nan"), -3.0]]])
    assert compare(before, lost, torch.bfloat16).logits == float("inf")
    assert export_parity.BOUNDS[torch.float32] < export_parity.BOUNDS[torch.bfloat16]


def changed_run(place, name, **policy):
    """A copy of the run whose policy has other settings; its name as --run takes it."""
    directory = place / "runs" / name
    shutil.copytree(place / "runs/smolvlm", directory)
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    settings["policy"] |= policy
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return name


def checkpoint(place, name, change=lambda weights: None, **config):
    """A copy of the embedded policy as a folder of the user's, with other weights or config."""
    folder = place / name
    shutil.copytree(ASSETS / "smolvlm", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def test_the_adapter_of_another_base_is_refused(place, capsys):
    def other(weights):
        weights[min(weights)] += 1

    changed_run(place, "other", model=checkpoint(place, "base-other", other))
    sentence = refused(capsys, "--run", "other", "--to", "adapter", "--out", "out/x")
    assert "the adapter of run 'runs/other' was trained on another base" in sentence
    changed_run(place, "qwen", model=str(ASSETS / "qwen2vl"))
    sentence = refused(capsys, "--run", "qwen", "--to", "adapter", "--out", "out/x")
    assert "qwen2_vl" in sentence
    assert not (place / "out/x").exists()


def test_a_quantised_base_is_not_merged(place, capsys):
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    changed_run(place, "quantised", model=checkpoint(place, "base-quantised", **config))
    sentence = refused(capsys, "--run", "quantised", "--to", "merged", "--out", "out/x")
    assert "is quantised: merged weights would be rounded again" in sentence


def test_a_run_on_an_archive_is_exported(place, capsys):
    pictures = sorted((place / "scenes").rglob("*.png"))[:2]
    with zipfile.ZipFile(place / "photos.zip", "w") as archive:
        for path in pictures:
            archive.write(path, path.name)
    directory = place / "runs" / changed_run(place, "zipped")
    source = str(place / "photos.zip")
    listing = {"source": source, "ids": ImageFolder.index(source).ids, "drawn": False}
    (directory / "heldout.json").write_text(json.dumps(listing))
    for more in ([], ["--images", "photos.zip"]):
        words = ["--run", "zipped", "--to", "adapter", "--out", "out/zipped", "--overwrite"]
        assert cli.main(["export", *words, *more]) == 0
        record = json.loads((place / "out/zipped/export.json").read_text())
        assert record["parity"]["images"] == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_run_on_four_bits_is_exported_as_an_adapter_alone(place, capsys):
    directory = place / "runs" / changed_run(place, "four-bits", train={"language": "qlora"})
    model, processor = load_policy(
        "smolvlm", "embedded", dtype="float32", train={"language": "qlora"}
    )
    build_vision_cache(model, processor, "smolvlm")  # a CPU packs the weights at their first use
    environment = {"policy_hash": content_key(model, processor), "device": load.device().type}
    environment |= {"transformers": version("transformers")}
    (directory / "environment.json").write_text(json.dumps(environment))
    words = ["--run", "four-bits", "--out", "out/four-bits", *ONE]
    assert "is quantised" in refused(capsys, *words, "--to", "merged")
    assert cli.main(["export", *words, "--to", "adapter"]) == 0
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, "out/four-bits"], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == vizer_rl.Captioner.from_run(directory)(["photo.jpg"])


def test_the_adapter_of_a_folder_is_exported_but_not_uploaded(place, capsys, monkeypatch):
    folder = checkpoint(place, "base-mine")
    changed_run(place, "mine-too", model=folder)
    words = ["--run", "mine-too", "--out", "out/mine", *ONE]
    assert cli.main(["export", *words, "--to", "adapter"]) == 0
    capsys.readouterr()
    assert f'from_pretrained({folder!r}, dtype="float32")' in (
        (place / "out/mine/README.md").read_text()
    )
    sentence = refused(capsys, *words, "--to", "hub", "--repo", "me/mine", "--dry-run")
    assert "is a folder of this machine" in sentence
    assert "export it with --to merged" in sentence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--run smolvml --to adapter", "run 'runs/smolvml' not found; nearest: runs/smolvlm"),
        ("--run smolvlm --to adapter --repo me/x", "--repo and --dry-run are of --to hub alone"),
        ("--run smolvlm --to hub", "--to hub needs --repo, the name on the hub; allowed: OWNER/"),
        ("--run smolvlm --to hub --repo x", "--repo 'x' is no name on the hub; allowed: OWNER/"),
        ("--run smolvlm --to hub --repo a/b/c", "--repo 'a/b/c' is no name on the hub"),
        ("--run smolvlm --to hub --repo a/b--c", "--repo 'a/b--c' is no name on the hub"),
        ("--run smolvlm --to adapter --images no-such", "'no-such' not found"),
        ("--run smolvlm --to adapter --out .", "--out '.': give the folder by its name"),
        ("--run smolvlm --to adapter --out ..", "--out '..': give the folder by its name"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(place, capsys, words, says):
    if "no-such" in words:  # an ImageError ends with a full stop
        assert cli.main(["export", *words.split(), "--out", "out/none"]) == 2
        assert says in capsys.readouterr().err
    else:
        assert says in refused(capsys, "--out", "out/none", *words.split())
    assert not (place / "out/none").exists()


def test_a_run_that_did_not_come_to_its_end_is_refused(place, capsys):
    directory = place / "runs" / changed_run(place, "stopped")
    (directory / "eval.json").unlink()
    words = ["--run", "stopped", "--to", "adapter", "--out", "out/none"]
    assert "has not come to its end: it has no eval.json; go on with" in refused(capsys, *words)
    shutil.rmtree(directory / "adapter")
    assert "has no trained weights" in refused(capsys, *words)


@pytest.fixture
def hub(monkeypatch):
    """The hub's side: what it was called with, and what it is to raise."""
    calls = {"raises": None, "uploads": [], "created": []}

    def create_repo(self, repo_id, **kwargs):
        calls["created"].append((repo_id, kwargs))

    def upload_folder(self, **kwargs):
        if calls["raises"]:
            raise calls["raises"]
        calls["uploads"].append(kwargs)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(export_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return calls


HUB = ["--run", "smolvlm", "--to", "hub", "--repo", "me/captioner", "--out"]


def test_nobody_uploads_without_a_token_or_a_network(hub, capsys, monkeypatch):
    monkeypatch.setattr(export_hub, "get_token", lambda: None)
    assert "log in with `hf auth login`" in refused(capsys, *HUB, "out/none")
    monkeypatch.setattr(export_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, *HUB, "out/none")
    assert hub["created"] == []


def test_a_dry_run_fills_an_empty_folder_and_sends_nothing(place, hub, capsys, monkeypatch):
    monkeypatch.setattr(export_hub, "get_token", lambda: None)
    out = place / "out/dry"
    out.mkdir()
    assert cli.main(["export", *HUB, str(out), "--dry-run", *ONE]) == 0
    printed = capsys.readouterr().out
    assert "Would upload to https://huggingface.co/me/captioner:" in printed
    assert "adapter_model.safetensors" in printed
    assert "base/model.safetensors" in printed
    assert (hub["created"], hub["uploads"]) == ([], [])
    assert json.loads((out / "export.json").read_text())["parity"]["images"] == 1
    (out / "README.md").write_text("changed")
    words = ["export", "--run", "smolvlm", "--to", "merged", "--out", str(out), "--overwrite", *ONE]
    assert cli.main(words) == 0
    assert json.loads((out / "export.json").read_text())["kind"] == "merged"
    assert "changed" not in (out / "README.md").read_text()
    assert not (out / "base").exists()


def test_an_upload_that_broke_off_goes_on_with_the_same_files(place, hub, capsys, monkeypatch):
    def nothing(*_):
        raise AssertionError("the export is there already")

    monkeypatch.setattr(export, "RunPolicy", nothing)
    before = everything(place / "out/smolvlm-merged")
    hub["raises"] = ConnectionError("reset by peer")
    sentence = refused(capsys, *HUB, "out/smolvlm-merged")
    assert "broke off (reset by peer): call it again, it goes on where it stopped" in sentence
    hub["raises"] = None
    assert cli.main(["export", *HUB, "out/smolvlm-merged"]) == 0
    (upload,) = hub["uploads"]
    assert (upload["repo_id"], str(upload["folder_path"])) == ("me/captioner", "out/smolvlm-merged")
    assert upload["ignore_patterns"] == ["checksums.json"]
    assert hub["created"][-1] == ("me/captioner", {"private": True, "exist_ok": True})
    assert everything(place / "out/smolvlm-merged") == before
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err + sentence


def test_the_export_of_another_run_is_not_uploaded_for_this_one(hub, capsys):
    sentence = refused(capsys, *HUB, "out/qwen2vl-merged")
    assert "holds an export of run 'qwen2vl-scenes', not of 'smolvlm-scenes'" in sentence
    assert hub["created"] == []
