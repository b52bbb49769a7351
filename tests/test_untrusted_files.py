"""What the code may load: no pickle, no code of a checkpoint, no reward that nobody named."""

import ast

import pytest
import torch

from vizer_rl.config.run_dir import read_run
from vizer_rl.errors import UserError
from vizer_rl.files import load_tensors

from .test_architecture import SOURCES, imports, name_of

pytestmark = pytest.mark.faults

LOADERS = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "importlib.reload"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
FROM_DISK = {"load_from_disk", "load_dataset"}  # of datasets
DATASETS = "vizer_rl/data/streams.py"  # its own door: datasets from 4 on runs no script of theirs
YAML_LOADERS = {"full_load", "unsafe_load", "load_all", "full_load_all", "unsafe_load_all"}


def unsafe(code):
    """What a file does that this project does not do."""
    faults = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            faults.add(node.arg)
        if isinstance(node, ast.keyword) and node.arg == "shell":
            faults.add("shell")
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            faults |= {name} & (FROM_DISK | YAML_LOADERS | {"trust_remote_code"})
        if isinstance(node, ast.Call):
            faults |= unsafe_call(node)
    return faults


def unsafe_call(node):
    name = ast.unparse(node.func)
    if name in RUNS_CODE or name in ("os.system", "os.popen"):
        return {name}
    if name == "torch.load":
        wanted = [k.value for k in node.keywords if k.arg == "weights_only"]
        safe = wanted and isinstance(wanted[0], ast.Constant) and wanted[0].value is True
        return set() if safe else {name}
    if name == "yaml.load":
        loaders = [ast.unparse(a) for a in node.args[1:]]
        return set() if loaders == ["_Loader"] else {name}
    return set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_that_is_loaded_can_run(path):
    allowed = {"load_dataset"} if name_of(path) == DATASETS else set()
    assert unsafe(path.read_text()) == allowed
    assert not {n.split(".")[0] for n in imports(path)} & LOADERS


def test_the_yaml_loader_is_a_safe_one():
    import yaml

    from vizer_rl.config.overrides import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", _Loader)


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "eval(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "datasets.load_from_disk(x)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_an_unsafe_load_would_be_noticed(code):
    assert unsafe(code)


class Runs:
    """Runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_in_the_place_of_tensors_is_refused_and_not_run(tmp_path):
    torch.save({"step": Runs(tmp_path / "ran")}, tmp_path / "state_0.pt")
    with pytest.raises(UserError, match=r"state_0.pt' cannot be read: Weights only load failed"):
        load_tensors(tmp_path / "state_0.pt")
    assert not (tmp_path / "ran").exists()


def test_reading_a_run_runs_no_reward_that_it_names(tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    settings = "name: x\nprofile: scenes\nfamily: smolvlm\npolicy: {model: embedded}\n"
    settings += "scorer: {train: embedded:a, heldout: embedded:b}\n"
    settings += f"train: {{max_completion_length: 24}}\nrewards: {{{reward}: {{weight: 1.0}}}}\n"
    (tmp_path / "config.yaml").write_text(settings)
    assert str(reward) in read_run(tmp_path).rewards
    assert not (tmp_path / "ran").exists()


def test_a_file_named_like_a_reward_in_the_working_directory_is_none(tmp_path, monkeypatch):
    import rewards

    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown reward 'evil'"):
        rewards.find("evil")
