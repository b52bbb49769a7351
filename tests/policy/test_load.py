"""Loading a checkpoint: what is refused before its weights are fetched, and packages it lacks."""

import json

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import hub

from vizer_rl.errors import UserError, user_message
from vizer_rl.policy.load import load_policy


@pytest.fixture
def fetched(monkeypatch):
    """The names of what was fetched beside the config."""
    names = []
    for cls in (AutoProcessor, AutoModelForImageTextToText):
        monkeypatch.setattr(
            cls, "from_pretrained", lambda *_, n=cls.__name__, **__: names.append(n)
        )
    return names


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [("llava_next", ", like that of llava_onevision"), ("a_type_of_next_year", "")],
)
def test_a_model_of_no_family_is_refused_by_its_config_alone(
    model_type, nearest, tmp_path, fetched
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError) as caught:
        load_policy("smolvlm", str(tmp_path))
    assert str(caught.value) == (
        f"policy.model {str(tmp_path)!r} is a {model_type} model, but family 'smolvlm' takes "
        "idefics3 or smolvlm; no family takes it: an entry in vizer_rl/policy/families.py names "
        "its vision modules, LoRA's modules, what ends a caption and how an image becomes tokens"
        f"{nearest}"
    )
    assert fetched == []


def test_a_folder_without_a_config_is_one_sentence(tmp_path, fetched):
    with pytest.raises(UserError, match=r"has no config\.json that names a model_type"):
        load_policy("smolvlm", str(tmp_path))
    assert fetched == []


def test_smolvlm2_without_num2words_is_one_sentence_that_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "smolvlm"}))

    class Tokenizer:
        def convert_tokens_to_ids(self, token):
            return 0

    def construct(*_, **__):  # as transformers does, once it has read the files
        return processing_smolvlm.SmolVLMProcessor(None, Tokenizer(), None)

    monkeypatch.setattr(AutoProcessor, "from_pretrained", construct)
    with pytest.raises(UserError) as caught:
        load_policy("smolvlm", str(tmp_path))
    assert str(caught.value) == (
        f"the processor of policy.model {str(tmp_path)!r} needs the package num2words: "
        "pip install num2words"
    )


def test_an_import_error_that_names_no_package_is_raised_as_it_is(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ImportError("cannot import name 'x'")

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "smolvlm"}))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", broken)
    with pytest.raises(ImportError, match="cannot import name"):
        load_policy("smolvlm", str(tmp_path))


def test_of_a_hub_model_of_another_family_the_config_alone_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    names = []

    def download(repo, filename, **_):
        names.append(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_get_cache_file_to_return", lambda repo, name, *_: tmp_path / name)
    with pytest.raises(UserError, match=r"'llava-hf/llava-1\.5-7b-hf' is a llava model"):
        load_policy("smolvlm", "llava-hf/llava-1.5-7b-hf")
    assert names == ["config.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RepositoryNotFoundError,
            "policy.model 'HuggingFaceTB/SmolVLM-Bas' is neither a folder nor a model on the "
            "Hugging Face hub; a private one needs: hf auth login",
        ),
        (
            GatedRepoError,
            "policy.model 'HuggingFaceTB/SmolVLM-Bas' is gated: ask for access at "
            "https://huggingface.co/HuggingFaceTB/SmolVLM-Bas, then log in with: hf auth login",
        ),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_one_sentence(error, message, monkeypatch):
    def download(*_, **__):
        request = httpx.Request("GET", "https://huggingface.co/x")
        raise error("401 Client Error", response=httpx.Response(401, request=request))

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(UserError) as caught:
        load_policy("smolvlm", "HuggingFaceTB/SmolVLM-Bas")
    assert str(caught.value) == message


def test_a_hub_that_cannot_be_reached_keeps_its_own_sentence(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(OSError, match="couldn't connect to") as caught:
        load_policy("smolvlm", "HuggingFaceTB/SmolVLM-Base")
    assert user_message(caught.value).startswith("the Hugging Face hub cannot be reached")
