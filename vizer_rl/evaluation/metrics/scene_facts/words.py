"""Lexicon and tokenizer of scene captions: the words that carry a claim, as one table."""

from __future__ import annotations

import re
from typing import Any

Token = tuple[str, Any]  # (kind, so a method of claims.ClaimParser; its argument)
MAX_NUMBER = 10  # a number above this is read as this
# kind [value] = its words; a space inside a word is written "_"
LEXICON_TEXT = """
shape circle = circle disc disk ball dot
shape square = square box block square_box square_block
shape triangle = triangle
shape star = star
shape heart = heart love_heart
shape cross = cross plus_sign cross_sign plus_symbol
shape other = rectangle oval ellipse diamond rhombus pentagon hexagon octagon arrow crescent
shape = shape object thing figure item something
round circle = round circular
round triangle = triangular
colour red = red crimson scarlet
colour orange = orange
colour yellow = yellow
colour green = green
colour blue = blue navy
colour purple = purple violet
colour pink = pink
colour black = black
colour white = white
colour brown = brown
colour grey = grey gray
size small = small tiny little mini
size large = large big huge giant
fill solid = solid plain filled full
fill striped = striped stripy stripey lined
relation left_of = left_of to_the_left_of on_the_left_of on_the_left_side_of
relation right_of = right_of to_the_right_of on_the_right_of on_the_right_side_of
relation above = above over on_top_of
relation below = below under beneath underneath
relation inside = inside inside_of within surrounded_by contained_in
relation around = around surrounds surrounding contains containing
within = in
number 1 = single
number 2 = two pair_of couple_of a_pair_of a_couple_of
number 3 = three
number 4 = four
number 5 = five
number 6 = six
number 7 = seven
number 8 = eight
number 9 = nine
number 10 = ten
one = one ones
article a = a an another
article the = the this these all all_the each
article some = some several many multiple few a_few
article both = both
article other = other the_other
article no_other = no_other no_more
copula is = is was
copula are = are were
that = that_is that_are which_is which_are being which that
pronoun = it its they them
quality = colour color size fill hue
quality striped = stripe stripes
scenery behind = background backdrop canvas wall
scenery = image picture photo photograph wallpaper drawing scene graphic illustration painting
negation = no not without nor neither never zero lacks lacking cannot
negation anything = nothing
closing = nothing_else nothing_more
pause = with has have having featuring there but there_is there_are this_is
plus = plus
and = and &
or = or
comma = ,
stop = . ; : ! ?
skip = very quite bright dark light coloured colored sized shaped exactly only not_only symbol icon
skip = to_its_left to_its_right on_its_left on_its_right to_the_left to_the_right on_the_left
skip = on_the_right above_it below_it inside_it around_it in_it
"""


def _lexicon() -> dict[str, Token]:
    words: dict[str, Token] = {}
    for line in LEXICON_TEXT.strip().splitlines():
        left, _, entries = line.partition(" = ")
        kind, _, name = left.replace("_", " ").partition(" ")
        for word in (entry.replace("_", " ") for entry in entries.split()):
            words[word] = (kind, name)
            if kind == "shape":
                words[word + ("es" if word[-1] in "sx" else "s")] = ("shapes", name)
            elif kind in ("colour", "size", "fill"):
                words[word] = ("attribute", (kind, name))
    for word in ("colour", "size", "fill"):
        words[word] = ("quality", "")
    return words


LEXICON = _lexicon()
LONGEST = max(len(word.split()) for word in LEXICON)
NOUNS = ("shape", "shapes")


def tokenize(caption: str) -> list[Token]:
    """The tokens of a caption, the longest entries first; "a star-shaped object" is one shape."""
    text = caption.lower().replace("’", "'").replace("n't", " not").replace("'s", "")
    words = re.findall(r"[^\W_]+|[.,;:!?&]", text)
    tokens: list[Token] = [("stop", "")]
    start = 0
    while start < len(words):
        spans = (" ".join(words[start : start + n]) for n in range(LONGEST, 0, -1))
        entry = next((span for span in spans if span in LEXICON), words[start])
        start += len(entry.split())
        digits = entry.isdecimal() and str(min(int(entry[:4]), MAX_NUMBER))
        token = ("number", digits) if digits else LEXICON.get(entry, ("unknown", entry))
        before = tokens[-1]
        if before[0] in (*NOUNS, "round") and before[1]:
            if token == ("skip", ""):
                continue
            if token[0] in NOUNS and not token[1]:  # "star shapes" are stars
                tokens[-1] = (token[0], before[1])
                continue
            if token[0] == "scenery":  # a "square picture" is no square
                tokens.pop()
        tokens.append(token)
    return [*tokens, ("stop", "")]
