"""A run file is read right: YAML, then the profile's overlay, then overrides."""

from pathlib import Path

import pytest
from PIL import Image
from trl import GRPOConfig

from vizer_rl.config import validate_files
from vizer_rl.config.load import load_run
from vizer_rl.config.run_dir import read_run
from vizer_rl.config.schema import Run
from vizer_rl.errors import ConfigError, UserError

from ..conftest import REPO

EXPERIMENTS = [REPO / "experiments" / f"{name}.yaml" for name in ("qwen2vl", "smolvlm")]
RUN = """
family: smolvlm
policy: {model: embedded}
scorer: {train: "embedded:a", heldout: "embedded:b"}
rewards:
  clip_similarity: {weight: 1.0}
  repetition: {weight: 0.3}
train: {per_device_train_batch_size: 16, num_generations: 8, learning_rate: 5e-4, max_steps: 5}
profiles:
  scenes: {seed: 1, train: {max_steps: 10}, rewards: {length: {weight: 0.5}}}
  full: {seed: 2, train: {max_steps: 20}, rewards: {repetition: null}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a run file and a folder of images; the checkpoints are built."""
    monkeypatch.chdir(tmp_path)
    for name in ("smolvlm", "qwen2vl", "scorer-a", "scorer-b"):
        Path("assets", name).mkdir(parents=True)
        Path("assets", name, "model.safetensors").touch()
    monkeypatch.setattr(validate_files, "ASSETS", tmp_path / "assets")
    Path("run.yaml").write_text(RUN)
    Path("photos").mkdir()
    Image.new("RGB", (4, 4)).save("photos/a.png")
    return tmp_path


def run(*overrides: str, **options) -> Run:
    return load_run(Path("run.yaml"), overrides, **options)


def complaint(*overrides: str, **options) -> str:
    """The error message, after a look that nothing was written."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(ConfigError) as caught:
        run(*overrides, **options)
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


def test_overrides_win_over_the_profile_which_wins_over_the_file():
    assert run().train["max_steps"] == 10
    assert run("train.max_steps=3").train["max_steps"] == 3
    assert run("train.max_steps=3", "train.max_steps=4").train["max_steps"] == 4
    assert run("profile=full", "data.images=photos").train["max_steps"] == 20
    assert run().train["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("requested", "cuda", "profile", "why"),
    [
        (["data.images=photos"], True, "full", "a CUDA device"),
        (["profile=scenes"], True, "scenes", "asked for"),
        (["profile=auto"], False, "scenes", "no CUDA device here"),
    ],
)
def test_the_profile_says_why_it_was_taken(requested, cuda, profile, why):
    built = run(*requested, cuda=cuda)
    assert built.profile == profile
    assert why in built.why_profile.splitlines()[0]


def test_rewards_are_added_removed_and_changed_by_profile_and_override():
    assert run().rewards == {
        "clip_similarity": {"weight": 1.0},
        "repetition": {"weight": 0.3},
        "length": {"weight": 0.5},
    }
    assert "repetition" not in run("profile=full", "data.images=photos").rewards
    built = run("rewards.length=null", "rewards.repetition.n=2", "rewards.random={}").rewards
    assert built["repetition"] == {"weight": 0.3, "n": 2}
    assert built["random"] == {"weight": 1.0}
    assert "length" not in built


def test_a_reward_may_be_a_file_of_the_users():
    Path("my.py").write_text("class Mine:\n    def __init__(self, *, pull: float = 1.0): ...\n")
    assert run("rewards.my.py.pull=2").rewards["my.py"] == {"pull": 2, "weight": 1.0}
    assert "rewards.my.py.pul: unknown parameter" in complaint("rewards.my.py.pul=2")


@pytest.mark.parametrize(
    ("override", "value"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.e-5", 1e-5), ("2", 2), (".5e-3", 5e-4)],
)
def test_scientific_notation_is_a_number(override, value):
    assert run(f"train.learning_rate={override}").train["learning_rate"] == value


def test_text_settings_are_taken_as_they_stand():
    Path("a: #1, [x]").mkdir()
    Image.new("RGB", (4, 4)).save("a: #1, [x]/a.png")
    assert run("data.images=a: #1, [x]").data.images == "a: #1, [x]"
    assert run("data.images={photos: 2.5, photos/*.png: 1}").data.images == {
        "photos": 2.5,
        "photos/*.png": 1,
    }
    assert run("data.images=photos/*.png").data.images == "photos/*.png"
    assert run("name=007").name == "007"
    assert run('data.prompt="What?"').data.prompt == "What?"
    assert run("data.images=null").data.images is None
    assert run("tracking.wandb=off").tracking.wandb == "off"


def test_names_directory_and_what_other_modules_read():
    built = run()
    assert built.name == "smolvlm-scenes"
    assert built.directory == Path("runs/smolvlm-scenes")
    assert run("name=x").directory == Path("runs/x")
    assert built.train["num_generations"] == 8
    assert built.train["max_completion_length"] == GRPOConfig.max_completion_length


def test_a_resolved_run_loads_again_as_itself_on_any_machine():
    built = run("seed=3", "data.images=photos", "rewards.length=null", "train.learning_rate=1e-7")
    Path("again.yaml").write_text(built.to_yaml())
    assert (
        load_run(Path("again.yaml"), cuda=False) == built == load_run(Path("again.yaml"), cuda=True)
    )
    built.directory.mkdir(parents=True)
    (built.directory / "config.yaml").write_text(built.to_yaml())
    Path("photos").rename("elsewhere")
    assert read_run(built.directory) == built


def test_a_run_that_is_not_there_is_told_with_its_nearest_name():
    Path("runs/smolvlm-scenes").mkdir(parents=True)
    with pytest.raises(UserError, match="'runs/smolvlm-scens' not found; nearest: runs/smolvlm-sc"):
        read_run(Path("runs/smolvlm-scens"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("profile", ["scenes", "full"])
def test_the_run_files_load_in_both_profiles(file, profile):
    images = ["data.images=photos"] if profile == "full" else []
    built = load_run(file, [f"profile={profile}", *images])
    assert built.name == f"{file.stem}-{profile}"
    assert (built.policy.model == "embedded") == (profile == "scenes")
    lines = file.read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]  # says where the numbers come from
    assert len(lines) - len(header) <= 60
    assert len(header) <= 36
    for word in ("# Question:", "# Command:", "# Expected:", "# Time:"):
        assert word in file.read_text()


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_full_profile_has_the_budget_that_its_header_derives(file):
    run = load_run(file, ["profile=full", "data.images=photos"])
    train = run.train
    captions = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    images = captions // train["num_generations"]
    assert (images, train["num_generations"]) == (16, 8)
    mocha = 10 * 1e-6 * 10 * 3000  # LoRA wants ten times the rate of full tuning
    assert train["learning_rate"] * images * train["max_steps"] == pytest.approx(mocha, rel=0.05)
    assert train["lr_scheduler_type"].startswith("constant")  # else the sum is a smaller one
    assert 2 * 0.03 / run.monitor.images**0.5 < 0.004 < 2 * 0.03 / 64**0.5
    assert train["max_completion_length"] >= 1.3 * run.rewards["length"]["longest"] * 1.3
    assert (
        train["max_steps"] % run.monitor.interval == train["max_steps"] % train["save_steps"] == 0
    )


def test_a_mistake_in_the_profile_that_is_not_taken_is_told_too():
    text = RUN.replace("full: {seed: 2,", "full: {sed: 2,").replace(
        "scenes: {seed: 1", "scenes: {seed: y"
    )
    Path("run.yaml").write_text(text)
    lines = complaint().splitlines()[1:]
    assert lines[0].startswith("  profiles.scenes.seed: 'y'; allowed: ")
    assert lines[1].startswith("  profiles.full.sed: unknown key; ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("family: [smolvlm", "line 1, column 17: "),
        ("family: smolvlm\nseed: 1\nseed: 2", "line 3, column 1: key 'seed' stands there twice"),
        ("just words", "holds 'just words'; allowed: keys"),
        ("", "holds None; allowed: keys"),
        ("a: \0", "is not YAML"),
    ],
)
def test_what_is_not_yaml_is_told_with_line_and_column(text, result):
    Path("run.yaml").write_text(text)
    assert result in complaint()


def test_a_missing_run_file_is_told_with_its_nearest_name():
    with pytest.raises(ConfigError, match=r"run file 'rum\.yaml' not found; nearest: run\.yaml"):
        load_run(Path("rum.yaml"))
