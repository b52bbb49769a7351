"""The Python API: its page's programs run, nothing is imported before it is used, mistakes."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

import vizer_rl
from vizer_rl.audit import audit as audits
from vizer_rl.errors import ConfigError, UserError

from .conftest import REPO

PROGRAMS = re.findall(
    r"```python\n(.*?)```", (REPO / "docs" / "api.md").read_text(), flags=re.DOTALL
)


@pytest.fixture(scope="module")
def programs(workplace):
    """What the page's three programs leave behind, one after the other, and print."""
    photo = sorted((workplace / "data/scenes/train/images").glob("*.png"))[0]
    Image.open(photo).convert("RGB").save(workplace / "photo.jpg", quality=95)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(audits, "IMAGES", 8)
        for code in PROGRAMS:
            results.append({"__name__": "program"})
            exec(compile(code, "docs/api.md", "exec"), results[-1])
    return results


def test_there_are_three_short_programs():
    assert len(PROGRAMS) == 3
    for code in PROGRAMS:
        assert len(code.splitlines()) <= 12
        assert code.startswith("import vizer_rl\n")


def test_a_run_is_trained_and_captions(programs, workplace):
    run, captions = programs[0]["run"], programs[0]["captions"]
    assert isinstance(run, vizer_rl.Run)
    assert run.train["max_steps"] == 2
    lines = (workplace / run.directory / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    (caption,) = captions
    assert caption == caption.strip() != ""


def test_captions_are_scored_by_every_reward_of_the_run(programs):
    run, columns = programs[0]["run"], programs[1]["columns"]
    assert [*columns] == [*run.rewards, "ended", "sum"]
    assert {len(column) for column in columns.values()} == {2}
    weighted = sum(run.rewards[name]["weight"] * columns[name][0] for name in run.rewards)
    ended = columns["ended"][0]
    assert columns["sum"][0] == pytest.approx(weighted + ended, abs=1e-4)


def test_a_run_is_audited(programs, workplace):
    result = programs[2]["result"]
    assert result["verdict"]["overall"] in ("pass", "warn", "fail")
    written = json.loads((workplace / "runs/first/audit.json").read_text())
    assert written["verdict"] == result["verdict"]


def test_a_captioner_takes_files_and_open_images_in_their_order(programs, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    captioner, path = programs[0]["captioner"], workplace / "photo.jpg"
    (caption,) = programs[0]["captions"]
    other = Image.new("RGBA", (40, 90), "red")
    captions = captioner([str(path), path, other, Image.open(path)])
    assert [captions[0], captions[1], captions[3]] == [caption] * 3
    with pytest.raises(UserError, match=r"image 'photo\.jpeg' not found; nearest: .*photo\.jpg"):
        captioner(["photo.jpg", "photo.jpeg"])


def test_a_run_that_is_there_is_not_overwritten(programs, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for config in (programs[0]["run"], "runs/first/config.yaml"):
        with pytest.raises(ConfigError, match="--overwrite starts anew"):
            vizer_rl.train(config)
    with pytest.raises(UserError, match="a Run has its own already"):
        vizer_rl.audit(programs[0]["run"], {"seed": 1})


def test_mistakes_are_those_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.max_stepz.*nearest: max_steps"):
        vizer_rl.train("smolvlm.yaml", {"profile": "scenes", "train.max_stepz": 1})
    with pytest.raises(ConfigError, match=r"the package has one: write smolvlm\.yaml"):
        vizer_rl.audit("experiments/smolvlm.yaml", {"profile": "scenes"})
    with pytest.raises(ConfigError, match=r"run file 'smolvlmm\.yaml' not found"):
        vizer_rl.audit("smolvlmm.yaml")
    with pytest.raises(UserError, match="2 images, but 1 captions"):
        vizer_rl.score(["a.png", "b.png"], ["a"], "smolvlm.yaml", {"profile": "scenes"})
    with pytest.raises(UserError, match="the caption is empty"):
        vizer_rl.score(["a.png"], [" "], "smolvlm.yaml", {"profile": "scenes"})
    with pytest.raises(UserError, match="run 'runs/none' not found"):
        vizer_rl.Captioner.from_run("runs/none")
    assert not any(tmp_path.iterdir())


def test_importing_the_package_loads_nothing_and_audit_can_always_be_called():
    code = (
        "import sys, vizer_rl\n"
        "assert {*vizer_rl.__all__} <= {*dir(vizer_rl)}\n"
        "slow = {'torch', 'transformers', 'pydantic', 'yaml', 'rich', 'vizer_rl.api'}\n"
        "assert not slow & {*sys.modules}, slow & {*sys.modules}\n"
        "from vizer_rl import audit\n"
        "import vizer_rl.audit\n"
        "assert vizer_rl.audit is audit and callable(audit)\n"
        "assert callable(vizer_rl.train) and issubclass(vizer_rl.UserError, ValueError)\n"
        "assert 'torch' not in sys.modules\n"
        "try: vizer_rl.audits\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "module 'vizer_rl' has no attribute 'audits'\n", done.stderr
