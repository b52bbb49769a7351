"""Claim verification: does the reference policy say yes to the claims, less so without the image?

    R = mean over claims of  p(yes | image, "Is there a … in the image?") − p(yes | masked image)

over the caption's noun phrases with their attributes, at most `max_claims` of them, each once. The
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
    """Experimental: how much likelier the image makes the policy's yes to the claims."""

    range = (-1.0, 1.0)
    floor = -1.0
    reads = ("image", "text", "policy")

    def __init__(self, *, max_claims: int = 6, tagger: str = "builtin", step: float = 0.02) -> None:
        """`max_claims`: checked per caption; `tagger`: finds noun phrases, "builtin" or "spacy";
        `step`: differences below are noise."""
        if max_claims < 1:
            raise ValueError(f"claim_check: need max_claims >= 1, not {max_claims}")
        self.max_claims, self.tagger, self.step = max_claims, tagger, step

    def prepare(self, bank: Bank) -> None:
        """Refuse a policy that answers no questions, before anything is trained."""
        _must_answer(bank.sample.policy)

    def claims(self, caption: str) -> list[str]:
        """What the caption says is there: its noun phrases, each once."""
        return list(dict.fromkeys(noun_phrases(caption, self.tagger)))[: self.max_claims]

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption its claims, each with what the image adds to the probability of yes."""
        _must_answer(batch.policy)
        claims_N = [self.claims(caption) for caption in batch.captions]
        rows: dict[tuple[str, str], int] = {}  # (image id, claim) -> a row with that image
        for row, (name, claims) in enumerate(zip(batch.image_ids, claims_N, strict=True)):
            for claim in claims:
                rows.setdefault((name, claim), row)
        questions = [QUESTION.format(_with_article(claim)) for _, claim in rows]
        images = Picked(batch.images, [*rows.values()])
        sighted = batch.policy.yes(questions, images)
        masked = batch.policy.yes(questions, images, "masked")
        gain = dict(zip(rows, (sighted - masked).tolist(), strict=True))
        return [
            [(claim, gain[name, claim]) for claim in claims]
            for name, claims in zip(batch.image_ids, claims_N, strict=True)
        ]

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score([gain for _, gain in claims]) for claims in self.parts(batch)]

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
