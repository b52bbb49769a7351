"""A run on images in an archive and a folder: trained, evaluated, reported, and no caption read."""

import json
import shutil
import zipfile

from vizer_rl import cli
from vizer_rl.data.sources import reopen_images

from ..conftest import FEW_REWARDS


def test_a_run_on_a_folder_and_an_archive(command, workplace, capsys):
    scenes = sorted((workplace / "data/scenes/train/images").glob("*.png"))
    (workplace / "mine").mkdir(exist_ok=True)
    for path in scenes[:40]:
        shutil.copy(path, workplace / "mine")
    with zipfile.ZipFile(workplace / "more.zip", "w") as archive:
        for path in scenes[40:80]:
            archive.write(path, path.name)
            archive.writestr(f"{path.stem}.txt", "a label")
    settings = "data.images={mine: 1, more.zip: 1}"
    more = ["train.max_steps=1", "data.heldout=12"]
    directory = command("smolvlm", "several", settings, *FEW_REWARDS, *more)
    shown = capsys.readouterr().out
    assert "only pixels are read; not read: .txt (40)" in shown
    heldout = json.loads((directory / "heldout.json").read_text())
    assert json.loads(heldout["source"]) == {
        str(workplace / "mine"): 1,
        str(workplace / "more.zip"): 1,
    }
    images = reopen_images(heldout["source"], heldout["ids"])
    assert {i[:2] for i in images.ids} == {"1/", "2/"}
    assert all(images.load(i).size == (96, 96) for i in images.ids)
    result = json.loads((directory / "eval.json").read_text())
    assert result["n_images"] == len(images.ids) == 12
    page = (directory / "report.html").read_text()
    assert "cannot be read" not in page
    assert "Pictures:" not in page
    assert cli.main(["evaluate", "--run", "several", "--no-controls"]) == 0
    assert cli.main(["evaluate", "--run", "several", "--images", "more.zip", "--no-controls"]) == 0
    assert (directory / "images-more-zip" / "eval.json").is_file()
