"""The commands that are printed after a training."""

import json

from vizer_rl.training.next_steps import print_next_steps


def test_next_steps_name_the_run_and_open_wandb(tmp_path, capsys):
    directory = tmp_path / "mine"
    directory.mkdir()

    def printed(**tracked):
        (directory / "wandb.json").write_text(json.dumps(tracked))
        print_next_steps(directory, "smolvlm")
        return capsys.readouterr().out

    online = printed(mode="online", url="https://wandb.ai/me/x", dir="d")
    assert "https://wandb.ai/me/x" in online
    assert "wandb sync" not in online
    offline = printed(mode="offline", url=None, dir="runs/my run")
    assert "wandb sync 'runs/my run'" in offline
    assert ".venv/bin/vizer-rl caption photo.jpg --run mine" in offline
    assert "make train-smolvlm PROFILE=full IMAGES=~/photos NAME=photos" in offline
    (directory / "wandb.json").unlink()
    print_next_steps(directory, "smolvlm")
    assert "W&B" not in capsys.readouterr().out
