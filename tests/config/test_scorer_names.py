"""Names of scorers: their licence, and refused where open_clip builds the wrong activation."""

import warnings

import open_clip
import pytest
import yaml

from vizer_rl.config.licences import LICENCES, UNKNOWN, scorer_licence, scorer_licences
from vizer_rl.config.schema import Policy, Run, Scorer
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
            assert scorer_licence(scorer) != UNKNOWN
            readme = (REPO / "README.md").read_text().split("Licences of the scorers: ")[1]
            assert f"`{scorer}`" in readme.split("environment.json")[0]


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("embedded:a", "Apache-2.0, as this project"),
        ("ViT-L-14-quickgelu/dfn2b", "apple-amlr (research only)"),
        ("ViT-H-14/laion2b_s32b_b79k", "MIT"),
        ("ViT-L-14/datacomp_xl_s13b_b90k", "MIT"),
        ("ViT-L-14-CLIPA/datacomp1b", UNKNOWN),
        ("MobileCLIP2-S0/dfndr2b", UNKNOWN),
        ("local-dir:models/webli", UNKNOWN),
    ],
)
def test_a_licence_is_by_the_tag_and_unknown_where_it_is_not_certain(name, licence):
    assert scorer_licence(name) == licence


def test_every_tag_of_the_table_is_one_of_open_clips():
    assert all(any(tag.startswith(start) for _, tag in TAGS) for start in LICENCES)


def test_the_licences_of_a_run_are_of_its_scorers_and_its_rewards_encoders():
    retrieval = {"encoder": "ViT-H-14-quickgelu/dfn5b", "neighbours": "policy"}
    run = Run(
        family="smolvlm",
        profile="scenes",
        name="mine",
        policy=Policy(model="embedded"),
        scorer=Scorer(train="embedded:a", heldout="ViT-B-16-SigLIP/webli"),
        rewards={"self_retrieval": retrieval, "mine": {"encoder": 3, "neighbours": "a/b"}},
        train={},
    )
    assert scorer_licences(run) == {
        "embedded:a": "Apache-2.0, as this project",
        "ViT-B-16-SigLIP/webli": "Apache-2.0",
        "ViT-H-14-quickgelu/dfn5b": "apple-amlr (research only)",
        "a/b": UNKNOWN,
    }


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").touch()
    (problem,) = scorer_problems(f"local-dir:{tmp_path}")
    assert problem.startswith(f"'{tmp_path}' holds no weights (.safetensors, .bin, .pth)")
    (tmp_path / "open_clip_pytorch_model.bin").touch()
    assert not [*scorer_problems(f"local-dir:{tmp_path}")]
