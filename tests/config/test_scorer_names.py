"""Names of scorers: refused exactly where open_clip would build another activation than trained."""

import warnings

import open_clip
import pytest
import yaml

from vizer_rl.config.validate_files import scorer_problems

from ..conftest import REPO

TAGS = open_clip.list_pretrained()


class Built(Exception):
    """Raised in the place of building a model, which is after open_clip's check."""


def warns(model, tag, monkeypatch):
    """Whether open_clip itself warns of the activation when it builds this tag."""

    def build(**_):
        raise Built

    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: "weights")
    for architecture in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(open_clip.factory, architecture, build)
    with warnings.catch_warnings(record=True, action="always") as caught, pytest.raises(Built):
        open_clip.create_model(model, pretrained=tag)
    return any("QuickGELU mismatch" in str(warning.message) for warning in caught)


def test_a_tag_is_refused_exactly_where_open_clip_warns_of_its_activation(monkeypatch):
    refused = {pair: list(scorer_problems("/".join(pair))) for pair in TAGS}
    assert {pair for pair in TAGS if refused[pair]} == {p for p in TAGS if warns(*p, monkeypatch)}
    assert len(TAGS) > 100
    assert sum(map(bool, refused.values())) > 20
    for (model, tag), problems in refused.items():
        for problem in problems:
            nearest = problem.split("nearest allowed: ")[1]
            assert not list(scorer_problems(nearest))
            if (f"{model}-quickgelu", tag) in TAGS:
                assert nearest == f"{model}-quickgelu/{tag}"


@pytest.mark.parametrize(
    "path", sorted((REPO / "experiments").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_scorers_of_the_run_files_are_allowed(path):
    for profile in yaml.safe_load(path.read_text())["profiles"].values():
        for scorer in profile["scorer"].values():
            assert not list(scorer_problems(scorer))
