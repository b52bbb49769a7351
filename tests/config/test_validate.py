"""Every mistake in a run file is told at once, with its place, and nothing is written."""

import inspect
import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig, GRPOTrainer

import rewards
from vizer_rl.algorithms import ALGORITHMS, find
from vizer_rl.config import validate_files
from vizer_rl.config.overrides import merge
from vizer_rl.config.problems import RENAMED, field_at
from vizer_rl.config.run_dir import read_run
from vizer_rl.config.trainer_settings import SETTINGS
from vizer_rl.config.validate import CHOICES, DERIVED, _texts
from vizer_rl.errors import ConfigError

from .test_config import RUN, complaint, folder, run  # noqa: F401  `folder` is used by every test


@pytest.mark.parametrize(
    ("override", "result"),
    [
        ("polcy.model=x", "polcy: unknown key; .*; nearest: policy"),
        ("policy.modle=x", "policy.modle: unknown key; allowed: model, .*; nearest: model"),
        ("policy.lora.alfa=1", "policy.lora.alfa: unknown key; allowed: r, .*; nearest: alpha"),
        (
            "monitor.intervl=1",
            "monitor.intervl: unknown key; "
            "allowed: interval, images, keep, on_alarm, audit; nearest: interval",
        ),
        ("family=smolvm", "family: 'smolvm' is unknown; allowed: smolvlm, .*; nearest: smolvlm"),
        ("algorithm=grop", "algorithm: 'grop' is unknown; .*; nearest: grpo"),
        ("profile=ful", "profile: 'ful' is unknown; allowed: auto, scenes, full; nearest: full"),
        ("policy.dtype=float61", "policy.dtype: 'float61' .* nearest: float16"),
        ("tracking.wandb=ofline", "tracking.wandb: 'ofline' .* nearest: offline"),
        ("tracking.report_to=[wandb,trakio]", "report_to: 'trakio' is unknown.* nearest: trackio"),
        ("tracking.report_to=wandb", "tracking.report_to: 'wandb'; allowed: .*list"),
        ("tracking.max_mb=-1", "tracking.max_mb: -1; allowed: .*0"),
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
        ("train.gamma=1", "train.gamma: algorithm grpo has no such setting; algorithm=ppo has it"),
        ("train.alignment_coef=-1", "train.alignment_coef: -1; allowed: .*"),
        ("mapper.captions=x", "mapper.captions: 'x' is read only with mapper.source=captions"),
        ("mapper.source=captions", "mapper.captions: missing"),
        ("monitor.on_alarm=rolback", "monitor.on_alarm: 'rolback' .* nearest: rollback"),
        ("mapper.width=64", "mapper: nothing uses it: algorithm=vizer or train.alignment_coef"),
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
        ("data.images={photo: 1}", "data.images: 'photo' not found; .*photos"),
        ("data.images={photos: 0}", "data.images: {'photos': 0}; .* sources to weights above 0"),
        ("data.images={photos: x}", "data.images: {'photos': 'x'}; .* to weights above 0"),
        ("data.images=3.tar", "data.images: '3.tar' not found"),
        ("data.images={0..2}.tar", "data.images: .*'0.tar' not found; 3 of 3 shards are missing"),
        ("data.images=hf:a/b[x:1]", "data.images: 'hf:a/b.x:1.' is no address of a data set"),
        ("policy.model=./photo", "policy.model: folder 'photo' not found; nearest: photos"),
        ("policy.model=a/b/c", "policy.model: folder 'a/b/c' not found"),
        ("policy.model=photos", "policy.model: 'photos' has no config.json"),
        ("policy.model=photos", "policy.model: 'photos' has no processor: neither of prep"),
        ("scorer.train=embedded:c", "scorer.train: 'embedded:c' is unknown; .*; nearest: embedded"),
        ("scorer.train=ViT-L-14/dfn2", "scorer.train: .*; nearest: ViT-L-14/dfn2b_s39b"),
        ("scorer.train=ViT-L-14/dfn2b", "scorer.train: .* nearest allowed: ViT-L-14-quickgelu/dfn"),
        ("scorer.heldout=local-dir:x", "scorer.heldout: 'x' is no folder with an open_clip_con"),
        ("nonsense", "nonsense: not section.key=value"),
        ("=3", ": unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_place_the_value_and_what_is_allowed(override, result):
    message = complaint(override)
    lines = message.splitlines()[1:]
    assert any(re.search(result, line) for line in lines), message
    assert len(lines) <= 3, message


def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(validate_files, "find_spec", lambda name: None if name == "mlflow" else 1)
    (line,) = complaint("tracking.report_to=[wandb,trackio,mlflow]").splitlines()[1:]
    assert line == "  tracking.report_to: mlflow is not installed here: pip install mlflow"


def test_raft_keeps_fewer_than_it_samples_and_vllm_has_no_reference_to_sample_from():
    message = complaint("algorithm=raft", "train.keep=8")
    assert "train.keep: 8; allowed: 1 to 7, below num_generations, which is 8" in message
    message = complaint("algorithm=raft", "train.sample_from=reference", "train.use_vllm=true")
    assert "train.sample_from: 'reference'; allowed: policy, for vLLM samples from" in message
    assert "train.keep: 0; allowed: at least 1" in complaint("algorithm=raft", "train.keep=0")
    assert "algorithm=raft has it" in complaint("train.sample_from=policy")


@pytest.mark.parametrize(
    ("action", "other", "sentence"),
    [
        ("stop", "interval=0", "'stop'; allowed: warn, for alarms need a monitor.interval above 0"),
        ("rollback", "keep=last", "'rollback'; allowed: warn, stop, for monitor.keep is last"),
    ],
)
def test_an_end_by_alarm_needs_a_monitor_to_go_by(action, other, sentence):
    message = complaint(f"monitor.on_alarm={action}", f"monitor.{other}")
    assert f"monitor.on_alarm: {sentence}" in message


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("monitor.every=1", "monitor.every: renamed; write monitor.interval"),
        ("monitor={every: 1}", "monitor.every: renamed; write monitor.interval"),
        ("engine.features=x", "engine.features: renamed; write engine.vision_cache"),
        (
            "rewards.sample_support.least=2",
            "rewards.sample_support.least: renamed; write rewards.sample_support.min_samples",
        ),
    ],
)
def test_a_renamed_setting_is_refused_with_its_new_name(override, sentence):
    assert complaint(override).splitlines()[1:] == [f"  {sentence}"]
    loc, value = override.split("=", 1)
    settings = yaml.safe_load(value)
    for key in reversed(loc.split(".")):
        settings = {key: settings}
    tree = yaml.safe_load(RUN)
    for file, place in [
        (merge(tree, settings), ""),
        (merge(tree, {"profiles": {"scenes": settings}}), "profiles.scenes."),
        (merge(tree, {"profiles": {"full": settings}}), "profiles.full."),
    ]:
        Path("run.yaml").write_text(yaml.safe_dump(file))
        assert complaint().splitlines()[1:] == [f"  {place}{sentence}"]


def test_the_new_name_of_a_renamed_setting_is_a_setting():
    for loc, name in RENAMED.items():
        if loc[0] == "rewards":
            assert name.split(".")[2] in inspect.signature(rewards.find(loc[1])).parameters
        else:
            assert field_at(tuple(name.split(".")))
        assert name.split(".")[:-1] == list(loc[:-1])


def test_a_run_directory_with_a_renamed_setting_is_refused_with_its_new_name():
    settings = run().model_dump()
    settings["monitor"]["every"] = settings["monitor"].pop("interval")
    Path("old").mkdir()
    Path("old/config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"monitor\.every: renamed; write monitor\.interval$"):
        read_run(Path("old"))


def test_the_algorithms_of_config_are_those_that_can_be_built():
    assert set(SETTINGS) == set(ALGORITHMS)
    for name in SETTINGS:
        assert issubclass(find(name), GRPOTrainer)


@pytest.mark.parametrize(
    ("override", "result"),
    [
        ("train.gamma=1.5", "train.gamma: 1.5; allowed: at least 0 and at most 1"),
        ("train.gamma=high", "train.gamma: 'high'; allowed: a number"),
        ("train.value_learning_rate=-1", "train.value_learning_rate: -1; allowed: .*"),
        ("train.value_trunk=shard", "train.value_trunk: 'shard' is unknown; .*; nearest: shared"),
        (
            "train.cliprange_valu=1",
            "train.cliprange_valu: unknown field of .* nearest: cliprange_",
        ),
        ("train.max_stepz=1", "train.max_stepz: unknown field of .*; nearest: max_steps"),
    ],
)
def test_the_settings_of_an_algorithm_are_checked_like_trls(override, result):
    message = complaint("algorithm=ppo", override)
    assert re.search(result, message), message
    assert len(message.splitlines()) == 2, message


def test_every_algorithm_takes_the_run_file_as_it_is():
    for name in ALGORITHMS:
        assert run(f"algorithm={name}").algorithm == name
        assert "alignment_coef" in {f.name for f in fields(SETTINGS[name])}
    assert run("algorithm=ppo", "train.gamma=1", "train.cliprange_value=null", "train.target_kl=.1")


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


def test_profile_full_says_how_to_give_it_images():
    assert "data.images: profile full needs images: IMAGES=/folder" in complaint("profile=full")


def test_a_model_of_another_family_is_refused():
    for name, content in [("config.json", {"model_type": "llava"}), ("processor_config.json", {})]:
        Path("photos", name).write_text(json.dumps(content))
    result = (
        "policy.model: 'photos' is a llava model, but family 'smolvlm' takes idefics3 or smolvlm"
    )
    assert result in complaint("policy.model=photos")
    assert "no family takes it: an entry in vizer_rl/policy/families.py" in complaint(
        "policy.model=photos"
    )
    Path("photos/config.json").write_text('{"model_type": "qwen3_vl"}')
    assert "; set family=qwen3vl" in complaint("policy.model=photos")
    Path("photos/config.json").write_text("{")
    assert "is not JSON" in complaint("policy.model=photos")
    Path("photos/config.json").write_text('{"model_type": "idefics3"}')
    assert run("policy.model=photos").policy.model == "photos"


def test_an_embedded_checkpoint_that_is_not_built_is_told_in_profile_scenes():
    for name in ("smolvlm", "scorer-b"):
        Path("assets", name, "model.safetensors").unlink()
    Path("assets/smolvlm").rmdir()
    result = [
        f"  {key}: the embedded checkpoint {name} is not in this checkout: run `make scenes-assets`"
        for key, name in [("policy.model", "smolvlm"), ("scorer.heldout", "scorer-b")]
    ]
    assert complaint("profile=scenes").splitlines()[1:] == result
    assert run("profile=scenes", "family=qwen2vl", "scorer.heldout=embedded:a")
    assert "embedded checkpoint" not in complaint("profile=full")
    sentence = "policy.model: no small checkpoint of qwen3vl ships: smolvlm and qwen2vl have one"
    assert sentence in complaint("profile=scenes", "family=qwen3vl")


def test_a_run_directory_is_never_overwritten_unasked():
    assert run(resume=False, overwrite=False)
    assert "nothing to resume: 'runs/smolvlm-scenes' not found" in complaint(resume=True)
    os.makedirs("runs/smolvlm-scenes")
    assert run(resume=False, overwrite=False)  # nothing is in it
    Path("runs/smolvlm-scenes/config.yaml").touch()
    both = complaint("seed=x", resume=False, overwrite=False)
    assert "name: runs/smolvlm-scenes exists, --overwrite starts anew" in both
    assert "seed: 'x'" in both
    assert "nothing to resume: no checkpoint-* in" in complaint(resume=True, overwrite=False)
    assert "exclude each other" in complaint(resume=True, overwrite=True)
    assert run(resume=False, overwrite=True) == run()
    os.makedirs("runs/smolvlm-scenes/checkpoint-3")
    assert run(resume=True, overwrite=False) == run()
    for overwrite in (False, "finished"):
        stopped = complaint(resume=False, overwrite=overwrite)
        assert "was stopped after checkpoint-3: --resume" in stopped
    Path("runs/smolvlm-scenes/eval.json").touch()
    assert run(resume=False, overwrite="finished") == run()
    finished = complaint(resume=False, overwrite=False)
    assert "runs/smolvlm-scenes has a finished run: --resume" in finished


def test_what_we_say_about_trl_is_true():
    assert set(DERIVED) | set(CHOICES) <= set(GRPOConfig.__dataclass_fields__)
    for key, choices in CHOICES.items():
        assert getattr(GRPOConfig, key) in choices


def test_a_password_in_the_address_of_one_of_several_sources_is_refused_and_not_printed():
    message = complaint(
        "data.images={'stream:https://me:secret@host/0.tar[train:5]': 1, photos: 1}"
    )
    assert "data.images: it holds a password or token" in message
    assert "secret" not in complaint("data.images={'stream:https://me:secret@host/0.tar': 0}")
    (problem,) = _texts({"data": {"images": {"\udcff": 1}}})
    assert problem[0] == ("data", "images")
    assert problem[1].endswith("has bytes that are not UTF-8")
