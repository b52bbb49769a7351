"""Does the frozen policy say yes to what the caption claims, and less so when it cannot see?

    R = mean over claims of  p(yes | image, "Is there a … in the image?") − p(yes | masked image)

over the caption's noun phrases with their attributes, at most `most` of them, each asked once. The
masked image takes away the model's liking for the word yes. Self-verification of atomic claims as
in RLAIF-V (Yu et al., CVPR 2025), here by the policy itself and without a label; frozen, so that
training cannot teach the judge. Only for policies that answer questions: a base model's yes is
noise, so they are refused. Hack: few and easy claims; keep a reward beside it that pays for detail.
Cost: two short passes of the policy per claim of a caption; claims that captions of one image share
are asked once.
"""

from __future__ import annotations

from rewards import Bank, CaptionBatch, Parts, ReferencePolicy, Scores, noun_phrases, win_rate
from rewards.lib.images import Picked

RATE = 0.9
QUESTION = "Is there {} in the image? Answer yes or no."


class ClaimCheck:
    """Experimental: how much surer the policy says yes to the claims when it sees the image."""

    range = (-1.0, 1.0)
    floor = -1.0
    reads = ("image", "text", "policy")

    def __init__(self, *, most: int = 6, tagger: str = "builtin", step: float = 0.02) -> None:
        """`most`: claims of a caption that are asked; `tagger`: finds noun phrases, "builtin" or
        "spacy"; `step`: differences below are noise."""
        if most < 1:
            raise ValueError(f"claim_check: need most >= 1, not {most}")
        self.most, self.tagger, self.step = most, tagger, step

    def prepare(self, bank: Bank) -> None:
        """Refuse a policy that answers no questions, before anything is trained."""
        _must_answer(bank.sample.policy)

    def claims(self, caption: str) -> list[str]:
        """What the caption says is there: its noun phrases, each once."""
        return list(dict.fromkeys(noun_phrases(caption, self.tagger)))[: self.most]

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption its claims, each with what seeing adds to the probability of yes."""
        _must_answer(batch.policy)
        claims = [self.claims(caption) for caption in batch.captions]
        asked: dict[tuple[str, str], int] = {}  # (image id, claim) -> a row with that image
        for row, (name, some) in enumerate(zip(batch.image_ids, claims, strict=True)):
            for claim in some:
                asked.setdefault((name, claim), row)
        questions = [QUESTION.format(_with_article(claim)) for _, claim in asked]
        images = Picked(batch.images, [*asked.values()])
        seen = batch.policy.yes(questions, images)
        blind = batch.policy.yes(questions, images, "masked")
        gain = dict(zip(asked, (seen - blind).tolist(), strict=True))
        return [
            [(claim, gain[name, claim]) for claim in some]
            for name, some in zip(batch.image_ids, claims, strict=True)
        ]

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score([gain for _, gain in told]) for told in self.parts(batch)]

    def score(self, gains: list[float]) -> float:
        """The mean in steps; a caption that claims nothing gets the floor."""
        mean = sum(gains) / len(gains) if gains else self.floor
        return round(mean / self.step) * self.step


def _must_answer(policy: ReferencePolicy) -> None:
    if not policy.instruct:
        raise ValueError(
            "claim_check asks the policy questions, but this checkpoint is not instruction-tuned "
            "(its name does not say Instruct): take claim_check out of the run file, take an "
            "Instruct checkpoint, or, where it does answer, set policy.instruct=true"
        )


def _with_article(claim: str) -> str:
    return f"{'an' if claim[0] in 'aeiou' else 'a'} {claim}"


def check(reward: ClaimCheck, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
