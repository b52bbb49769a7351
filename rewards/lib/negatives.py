"""Counts of hard and random negatives for retrieval, fitted to the images that there are."""

from __future__ import annotations

MIN_IMAGES = 16  # fewer, where the negatives do not fit, make retrieval too easy


def fit_negatives(hard: int, random: int, images: int) -> tuple[tuple[int, int], str | None]:
    """(hard, random) as set or, in the same proportion, as many as so many images give.

    The sentence says so where it is fewer. Raises ValueError for fewer than MIN_IMAGES then.
    """
    if images > hard + random:
        return (hard, random), None
    if images < MIN_IMAGES:
        raise ValueError(
            f"{images} training images are too few to retrieve one among {hard + random} others: "
            f"give {MIN_IMAGES} to train on, or leave this reward out (rewards.self_retrieval=null)"
        )
    num_hard = round((images - 1) * hard / (hard + random))
    num_random = images - 1 - num_hard
    return (num_hard, num_random), (
        f"{num_hard} hard and {num_random} random negatives instead of {hard} and {random}, "
        f"for there are only {images} training images"
    )
