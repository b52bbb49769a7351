"""A run file is read right, or every mistake in it is told at once and nothing is written."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from trl import GRPOConfig

from vizer_rl.config import CHOICES, OURS, ConfigError, Run, UserError, load, read_run

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))
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
    """An empty working directory with one run file and one folder of images."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    Path("photos").mkdir()
    Image.new("RGB", (4, 4)).save("photos/a.png")
    return tmp_path


def run(*overrides: str, **options) -> Run:
    return load(Path("run.yaml"), overrides, **options)


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
    ("asked", "cuda", "profile", "why"),
    [
        (["data.images=photos"], True, "full", "a CUDA device"),
        (["profile=scenes"], True, "scenes", "asked for"),
        (["profile=auto"], False, "scenes", "no CUDA device here"),
    ],
)
def test_the_profile_says_why_it_was_taken(asked, cuda, profile, why):
    made = run(*asked, cuda=cuda)
    assert made.profile == profile
    assert why in made.why_profile.splitlines()[0]


def test_rewards_are_added_removed_and_changed_by_profile_and_override():
    assert run().rewards == {
        "clip_similarity": {"weight": 1.0},
        "repetition": {"weight": 0.3},
        "length": {"weight": 0.5},
    }
    assert "repetition" not in run("profile=full", "data.images=photos").rewards
    made = run("rewards.length=null", "rewards.repetition.n=2", "rewards.random={}").rewards
    assert made["repetition"] == {"weight": 0.3, "n": 2}
    assert made["random"] == {"weight": 1.0}
    assert "length" not in made


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
    assert run("data.images=photos/*.png").data.images == "photos/*.png"
    assert run("name=007").name == "007"
    assert run('data.prompt="What?"').data.prompt == "What?"
    assert run("data.images=null").data.images is None
    assert run("tracking.wandb=off").tracking.wandb == "off"


def test_names_directory_and_what_other_modules_read():
    made = run()
    assert made.name == "smolvlm-scenes"
    assert made.directory == Path("runs/smolvlm-scenes")
    assert run("name=x").directory == Path("runs/x")
    assert made.train["num_generations"] == 8
    assert made.train["max_completion_length"] == GRPOConfig.max_completion_length


def test_a_resolved_run_loads_again_as_itself_on_any_machine():
    made = run("seed=3", "data.images=photos", "rewards.length=null", "train.learning_rate=1e-7")
    Path("again.yaml").write_text(made.to_yaml())
    assert load(Path("again.yaml"), cuda=False) == made == load(Path("again.yaml"), cuda=True)
    made.directory.mkdir(parents=True)
    (made.directory / "config.yaml").write_text(made.to_yaml())
    Path("photos").rename("elsewhere")
    assert read_run(made.directory) == made


def test_a_run_that_is_not_there_is_told_with_its_nearest_name():
    Path("runs/smolvlm-scenes").mkdir(parents=True)
    with pytest.raises(UserError, match="'runs/smolvlm-scens' not found; nearest: runs/smolvlm-sc"):
        read_run(Path("runs/smolvlm-scens"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("profile", ["scenes", "full"])
def test_the_run_files_load_in_both_profiles(file, profile):
    images = ["data.images=photos"] if profile == "full" else []
    made = load(file, [f"profile={profile}", *images])
    assert made.name == f"{made.family}-{profile}"
    assert (made.policy.model == "embedded") == (profile == "scenes")
    assert len(file.read_text().splitlines()) <= 60
    for word in ("# Question:", "# Command:", "# expected:", "# Time:"):
        assert word in file.read_text()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("polcy.model=x", "polcy: unknown key; .*; nearest: policy"),
        ("policy.modle=x", "policy.modle: unknown key; allowed: model, .*; nearest: model"),
        ("policy.lora.alfa=1", "policy.lora.alfa: unknown key; allowed: r, .*; nearest: alpha"),
        ("monitor.evry=1", "monitor.evry: unknown key; allowed: every, images; nearest: every"),
        ("family=smolvm", "family: 'smolvm' is unknown; allowed: smolvlm, .*; nearest: smolvlm"),
        ("algorithm=grop", "algorithm: 'grop' is unknown; .*; nearest: grpo"),
        ("profile=ful", "profile: 'ful' is unknown; allowed: auto, scenes, full; nearest: full"),
        ("policy.dtype=float61", "policy.dtype: 'float61' .* nearest: float16"),
        ("tracking.wandb=ofline", "tracking.wandb: 'ofline' .* nearest: offline"),
        ("seed=x", "seed: 'x'; allowed: a valid integer"),
        ("seed=-1", "seed: -1; allowed: greater than or equal to 0"),
        ("policy.lora.r=many", "policy.lora.r: 'many'; allowed: a valid integer"),
        ("policy.lora.dropout=.nan", "policy.lora.dropout: nan; allowed: "),
        ("policy=3", "policy: 3; allowed: "),
        ("policy={}", "policy.model: missing; allowed: `embedded`"),
        ("name=a/b", "name: 'a/b'; allowed: a plain folder name"),
        ("name=..", "name: '..'; allowed: a plain folder name"),
        ("rewards.repetitoin={}", "rewards.repetitoin: unknown reward .*'repetition'"),
        ("rewards.repetitoin=null", "rewards.repetitoin: no such reward .*; nearest: repetition"),
        ("rewards.length.shotest=1", "rewards.length.shotest: .*; nearest: shortest"),
        ("rewards.length.shortest=x", "rewards.length.shortest: 'x'; allowed: a whole number"),
        ("rewards.length.weight=.inf", "rewards.length.weight: inf; allowed: a finite number"),
        ("rewards.length.weight=true", "rewards.length.weight: True; allowed: a finite number"),
        ("rewards.length=3", "rewards.length: 3; allowed: a valid dictionary"),
        ("rewards={}", "rewards: no reward has a weight"),
        ("rewards={length: {weight: 0}}", "rewards: no reward has a weight"),
        ("train.max_stepz=1", "train.max_stepz: unknown field of .*; nearest: max_steps"),
        ("train.max_steps=lots", "train.max_steps: 'lots'; allowed: a whole number"),
        ("train.beta=high", "train.beta: 'high'; allowed: a number"),
        ("train.bf16=3", "train.bf16: 3; allowed: bool | None"),
        ("train.log_completions=1", "train.log_completions: 1; allowed: true or false"),
        ("train.lr_scheduler_type=cosin", "train.lr_scheduler_type: 'cosin' .* nearest: cosine"),
        ("train.loss_type=dr_gpro", "train.loss_type: 'dr_gpro' .* nearest: dr_grpo"),
        ("train.seed=3", "train.seed: not to be set here: set by `seed`"),
        ("train.output_dir=x", "train.output_dir: not to be set here: set by `name`"),
        ("train.reward_weights=[1]", "train.reward_weights: .*`rewards.NAME.weight`"),
        ("train.use_vllm=true", "train.use_vllm: True; allowed: false"),
        ("train.num_generations=1", "train.num_generations: 1; .* at least 2"),
        ("train.num_generations=null", "train.num_generations: None; .* at least 2"),
        ("train.per_device_train_batch_size=0", "batch_size: 0; .* at least 1"),
        ("data.images=photo", "data.images: 'photo' not found; .*photos"),
        ("data.images=photos/*.jpg", "data.images: 'photos/\\*.jpg' holds no file"),
        ("policy.model=./photo", "policy.model: folder 'photo' not found; nearest: photos"),
        ("policy.model=a/b/c", "policy.model: folder 'a/b/c' not found"),
        ("policy.model=photos", "policy.model: 'photos' has no config.json"),
        ("policy.model=photos", "policy.model: 'photos' has no processor: neither of prep"),
        ("scorer.train=embedded:c", "scorer.train: 'embedded:c' is unknown; .*; nearest: embedded"),
        ("scorer.train=ViT-L-14/dfn2", "scorer.train: .*; nearest: ViT-L-14/dfn2b"),
        ("scorer.heldout=local-dir:x", "scorer.heldout: 'x' is no folder with an open_clip_con"),
        ("nonsense", "nonsense: not section.key=value"),
        ("=3", ": unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_place_the_value_and_what_is_allowed(override, told):
    message = complaint(override)
    lines = message.splitlines()[1:]
    assert any(re.search(told, line) for line in lines), message
    assert len(lines) <= 3, message


@pytest.mark.parametrize(
    ("size", "steps", "group", "nearest"),
    [(9, 1, 8, "8 or 16"), (3, 1, 8, "8"), (6, 2, 8, "4 or 8"), (5, 4, 8, "4 or 6")],
)
def test_groups_must_be_whole_and_the_nearest_sizes_that_do_are_told(size, steps, group, nearest):
    sizes = f"train={{per_device_train_batch_size: {size}, num_generations: {group}}}"
    for key in ("gradient_accumulation_steps", "steps_per_generation"):
        message = complaint(sizes, f"train.{key}={steps}")
        assert f"train.per_device_train_batch_size: {size} × {steps} steps" in message
        assert message.endswith(f"nearest allowed: {nearest}")
        best = nearest.split()[0]
        assert run(sizes, f"train.{key}={steps}", f"train.per_device_train_batch_size={best}")


def test_all_mistakes_come_in_one_message_a_line_each():
    message = complaint(
        "seed=x", "polcy=1", "rewards.lenth={}", "train.betta=1", "data.images=no", "name=a/b", "oh"
    )
    lines = message.splitlines()
    assert lines[0] == "run.yaml cannot be run:"
    assert len(lines) == 1 + 7
    for key in ("seed", "polcy", "rewards.lenth", "train.betta", "data.images", "name", "oh"):
        assert sum(line.startswith(f"  {key}: ") for line in lines) == 1


def test_a_mistake_in_the_profile_that_is_not_taken_is_told_too():
    text = RUN.replace("full: {seed: 2,", "full: {sed: 2,").replace(
        "scenes: {seed: 1", "scenes: {seed: y"
    )
    Path("run.yaml").write_text(text)
    lines = complaint().splitlines()[1:]
    assert lines[0].startswith("  profiles.scenes.seed: 'y'; allowed: ")
    assert lines[1].startswith("  profiles.full.sed: unknown key; ")
    assert len(lines) == 2


def test_profile_full_says_how_to_give_it_images():
    assert "data.images: profile full needs images: IMAGES=/folder" in complaint("profile=full")


def test_a_model_of_another_family_is_refused(folder):
    for name, content in [("config.json", {"model_type": "llava"}), ("processor_config.json", {})]:
        (folder / "photos" / name).write_text(json.dumps(content))
    told = "policy.model: 'photos' is of type 'llava'; allowed for family smolvlm: idefics3"
    assert told in complaint("policy.model=photos")
    (folder / "photos/config.json").write_text("{")
    assert "is not JSON" in complaint("policy.model=photos")
    (folder / "photos/config.json").write_text('{"model_type": "idefics3"}')
    assert run("policy.model=photos").policy.model == "photos"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("family: [smolvlm", "line 1, column 17: "),
        ("family: smolvlm\nseed: 1\nseed: 2", "line 3, column 1: key 'seed' stands there twice"),
        ("just words", "holds 'just words'; allowed: keys"),
        ("", "holds None; allowed: keys"),
        ("a: \0", "is not YAML"),
    ],
)
def test_what_is_not_yaml_is_told_with_line_and_column(text, told):
    Path("run.yaml").write_text(text)
    assert told in complaint()


def test_a_missing_run_file_is_told_with_its_nearest_name():
    with pytest.raises(ConfigError, match=r"run file 'rum\.yaml' not found; nearest: run\.yaml"):
        load(Path("rum.yaml"))


def test_a_run_directory_is_never_overwritten_unasked():
    assert run(resume=False, overwrite=False)
    assert "nothing to resume: 'runs/smolvlm-scenes' not found" in complaint(resume=True)
    os.makedirs("runs/smolvlm-scenes")
    both = complaint("seed=x", resume=False, overwrite=False)
    assert "name: runs/smolvlm-scenes exists: --resume goes on" in both
    assert "seed: 'x'" in both
    assert "nothing to resume: no checkpoint-* in" in complaint(resume=True, overwrite=False)
    assert "exclude each other" in complaint(resume=True, overwrite=True)
    assert run(resume=False, overwrite=True) == run()
    os.makedirs("runs/smolvlm-scenes/checkpoint-3")
    assert run(resume=True, overwrite=False) == run()


def test_what_we_say_about_trl_is_true():
    assert set(OURS) | set(CHOICES) <= set(GRPOConfig.__dataclass_fields__)
    for key, choices in CHOICES.items():
        assert getattr(GRPOConfig, key) in choices
