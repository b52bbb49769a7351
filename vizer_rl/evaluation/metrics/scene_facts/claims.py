"""Claim parser: caption -> claims, left to right, no grammar; the unparsable is no claim."""

from __future__ import annotations

from dataclasses import dataclass, field

from .words import Token, tokenize

Attribute = tuple[str, str]  # ("colour", "red")
Group = tuple[int, ...]  # mention indices
Relation = tuple[Group, str, Group]


@dataclass
class Mention:
    """One object that the caption speaks of; the empty shape is "something"."""

    shape: str
    attributes: set[Attribute] = field(default_factory=set)
    denied: set[Attribute] = field(default_factory=set)

    def fits(self, shape: str, attributes: set[Attribute]) -> bool:
        """Whether "the … <shape>" with these attributes can be this mention again."""
        both = self.attributes | attributes
        return shape in ("", self.shape) and len({kind for kind, _ in both}) == len(both)


@dataclass
class Claims:
    """What a caption claims."""

    mentions: list[Mention] = field(default_factory=list)
    relations: set[Relation] = field(default_factory=set)
    denials: set[tuple[str, frozenset[Attribute]]] = field(default_factory=set)
    totals: set[int] = field(default_factory=set)
    vague: set[str] = field(default_factory=set)  # shapes in a bare plural, so without exact count


class ClaimParser:
    """One method `on_<kind>` per kind of token, left to right."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.attributes: set[Attribute] = set()  # of the current noun phrase, as the next two
        self.number, self.article = 0, ""
        self.group: Group | None = None  # what a loose attribute is about; (): nothing
        self.head: Group = ()  # antecedent of "it" and "is"
        self.heads: Group = ()  # antecedent of "they": all heads of the sentence
        self.pool: list[int] = []  # of "two circles, one … and one …": those still to be described
        self.pending: tuple[Group, str] | None = None  # subject and relation
        self.negative = self.predicate = self.verb = self.new_sentence = False
        self.shape = ""
        self.before: Token = ("stop", "")

    def parse(self, caption: str) -> Claims:
        tokens = tokenize(caption)
        for token, self.after in zip(tokens, [*tokens[1:], ("stop", "")], strict=True):
            getattr(self, f"on_{token[0]}")(token[1])
            self.before = token
        for mention in self.claims.mentions:
            if ("fill", "striped") in mention.attributes:  # "red and white striped" is red
                mention.attributes.discard(("colour", "white"))
        return self.claims

    def take(self) -> tuple[set[Attribute], int, str]:
        """The noun phrase parsed so far, which is then over."""
        taken = self.attributes, self.number, self.article
        self.attributes, self.number, self.article = set(), 0, ""
        return taken

    def flush(self) -> None:
        """Attributes without a noun: about the group, its next member, or something unknown."""
        attributes, number, article = self.take()
        if (number == 1 or article == "other") and self.pool:
            self.group = (self.pool.pop(0),)
        elif attributes and not self.negative and (self.group is None or article in ("a", "the")):
            self.group = self.mention("", attributes, 1)
        if attributes and self.negative and not self.group:
            self.claims.denials.add(("", frozenset(attributes)))
        for mention in (self.claims.mentions[i] for i in self.group or ()):
            (mention.denied if self.negative else mention.attributes).update(attributes)
        self.negative = self.negative and not attributes

    def mention(self, shape: str, attributes: set[Attribute], count: int) -> Group:
        mentions = self.claims.mentions
        mentions += [Mention(shape, set(attributes)) for _ in range(count)]
        return tuple(range(len(mentions) - count, len(mentions)))

    def earlier(self, shape: str, attributes: set[Attribute], count: int) -> Group:
        """The earlier mentions that "the <shape>" can be: the likest, then the latest."""
        subject, mentions = self.pending[0] if self.pending else (), self.claims.mentions
        fits = [i for i, m in enumerate(mentions) if i not in subject and m.fits(shape, attributes)]
        fits.sort(key=lambda i: (len(mentions[i].attributes & attributes), i in self.head, i))
        return tuple(fits[-count:]) if len(fits) >= count else ()

    def on_shape(self, shape: str, plural: bool = False) -> None:
        attributes, number, article = self.take()
        mentions = self.claims.mentions
        if article == "no other":
            return None if shape else self.on_closing("")
        if self.negative:
            return self.deny(shape, attributes)
        count = number or 1 + plural
        group: Group = ()
        if self.predicate and self.group and len(self.group) == count:
            if not shape or {mentions[i].shape for i in self.group} <= {"", shape}:
                group = self.group
        elif article in ("the", "both"):
            group = self.earlier(shape, attributes, count)
        if number and not shape and not attributes:
            self.claims.totals.add(number)
        if plural and not number and not group:
            self.claims.vague.add(shape)
        group = group or self.mention(shape, attributes, count)
        for i in group:
            mentions[i].attributes |= attributes
            mentions[i].shape = mentions[i].shape or shape
        self.settle(group)
        self.shape = shape or self.shape

    def on_shapes(self, shape: str) -> None:
        self.on_shape(shape, plural=True)

    def settle(self, group: Group) -> None:
        """After a noun: closes the pending relation and sets the antecedents."""
        if self.pending:
            self.claims.relations.add((*self.pending, group))
        else:
            self.heads = group if self.new_sentence else self.heads + group
            self.head, self.new_sentence = group, False
        self.pool = list(group) if len(group) > 1 else self.pool
        self.group, self.pending, self.predicate, self.verb = group, None, False, False

    def deny(self, shape: str, attributes: set[Attribute]) -> None:
        self.claims.denials.add((shape, frozenset(attributes)))
        self.negative, self.group, self.pending = self.after[0] in ("or", "comma"), (), None

    def on_attribute(self, attribute: Attribute) -> None:
        self.attributes.add(attribute)

    def on_article(self, article: str) -> None:
        self.flush()
        self.article, self.predicate = article, self.before[0] == "copula"
        self.number = 2 * (article == "both")

    def on_number(self, number: str) -> None:
        if self.attributes:
            self.flush()
        self.number = int(number)
        self.negative = self.negative or not self.number

    def on_one(self, _: str) -> None:  # "a red one", or "one red circle"
        ends = self.attributes or self.after[0] not in ("attribute", "shape", "shapes")
        noun = ends and self.article and self.shape
        return self.on_shape(self.shape) if noun else self.on_number("1")

    def on_plus(self, _: str) -> None:  # "a blue plus", or "a circle plus a square"
        noun = self.attributes or self.number or self.article
        return self.on_shape("cross") if noun else self.on_and("")

    def on_quality(self, value: str) -> None:  # "of red colour", "with white stripes"
        if value:
            self.attributes = {("fill", value)}
        if value or self.after[0] not in ("attribute", "shape", "shapes"):
            self.article, self.number = "", 0
            self.flush()

    def on_scenery(self, behind: str) -> None:
        self.take()  # what is said of the image or its background is about no object
        self.pending, self.negative = None, False
        if behind or not self.head:
            self.group = ()

    def on_relation(self, relation: str) -> None:
        self.flush()
        subject = self.head if self.before[0] in ("and", "comma") else self.group
        self.pending = (subject, relation) if subject and not self.negative else None
        self.negative = False

    def on_within(self, _: str) -> None:  # "in" is "inside" before "a square" only
        if self.after[0] == "article":
            self.on_relation("inside")

    def on_copula(self, verb: str) -> None:
        self.flush()
        no_group = self.group == () and self.before[0] in ("shape", "shapes", "scenery")
        next_member = self.before[0] == "one" or self.before == ("article", "other")
        if not no_group and not next_member:
            self.on_pronoun("they" if verb == "are" else "it")
        self.pending, self.negative, self.verb = None, False, True

    def on_pronoun(self, pronoun: str) -> None:
        self.flush()
        several = self.heads if len(self.heads) > 1 else tuple(range(len(self.claims.mentions)))
        self.group = several if pronoun == "they" and len(self.head) < 2 else self.head
        self.pending = None

    def on_that(self, _: str) -> None:
        self.flush()
        self.pending, self.verb = None, True

    def on_negation(self, anything: str) -> None:  # with a value: "nothing red"
        self.flush()
        self.pending, self.negative = None, True
        self.group = None if anything else self.group

    def on_closing(self, _: str) -> None:  # "nothing else"
        self.flush()
        self.claims.totals.add(sum(bool(m.shape) for m in self.claims.mentions))

    def on_pause(self, _: str) -> None:
        self.flush()
        self.pending, self.negative = None, False

    def on_and(self, _: str) -> None:
        if self.negative or self.verb or self.number == 1:
            self.flush()
        self.negative = False

    def on_or(self, _: str) -> None:
        if self.negative:
            self.flush()
            self.negative = True

    def on_comma(self, _: str) -> None:
        negative = self.negative and self.after[0] in ("shape", "shapes", "or")
        if self.negative or self.verb:
            self.flush()
        if not self.attributes:
            self.pending = None
        self.negative = negative

    def on_stop(self, _: str) -> None:
        self.flush()
        self.group, self.pending, self.negative, self.verb = None, None, False, False
        self.new_sentence = True

    def on_unknown(self, _: str) -> None:
        self.pending = None

    def on_skip(self, _: str) -> None:
        """A word that claims nothing and ends nothing."""

    on_round = on_skip


def parse(caption: str) -> Claims:
    """The claims of a caption, whatever text it is."""
    return ClaimParser().parse(caption)
