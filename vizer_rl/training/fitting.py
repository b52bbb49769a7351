"""Fitting a run into memory: its estimate as lines, and the settings that bring it under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rich.console import Console

from ..config.schema import Run
from .estimate import Estimate, MemoryModel, Parts, Workload, estimate
from .step_time import ERROR, Rates, step_seconds

MIN_COMPLETION, MIN_IMAGE_TOKENS = 16, 64  # below, captions and images lose what they are for
GIB = 2**30


Halving = Callable[[Workload], Workload | None]  # None: no less is possible


@dataclass(frozen=True)
class Change:
    """Overrides of a run, what a step then computes, and its peak in bytes."""

    overrides: str
    work: Workload
    peak: int


def report_fit(run: Run, console: Console) -> None:
    """Print a run's memory and step time on this machine, and what to change where it is too large.

    Raises what loading a config or a processor raises.
    """
    model, work = estimate(run)
    result, policy = model.estimate(work), model.policy
    console.print(
        f"\n[bold]memory[/], images of up to {work.image_tokens} tokens, captions of "
        f"{work.max_new_tokens}, {work.batch} of them in a pass:"
    )
    for line in memory_lines(result):
        console.print(f"  {line}", markup=False)
    if not result.fits:
        console.print("what brings it under:")
        for line in change_lines(changes(run, model, work, result.available), result.available):
            console.print(f"  {line}", markup=False)
    seconds = step_seconds(
        policy, work, bool(run.train.get("beta", 1)), Rates.measured(policy.dtype)
    )
    console.print(
        f"step: about {seconds:.2g} s without rewards, right within a factor of {ERROR:g}; "
        "measured on small policies, never on a GPU"
    )


def memory_lines(estimate: Estimate) -> Iterator[str]:
    """What is there throughout, each phase on top of it, and the peak against what is free."""
    yield f"throughout: {_parts(estimate.fixed)}"
    for phase, parts in estimate.phases.items():
        yield f"{phase}: {_parts(parts)}"
    verdict = "fits" if estimate.fits else "does not fit"
    yield (
        f"peak {gib(estimate.peak)} in phase {estimate.phase}, {gib(estimate.available)} free: "
        f"{verdict} (measured against it: benchmarks/memory.py, on a CPU, never on a GPU)"
    )


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.2f} GiB"


def _parts(parts: Parts) -> str:
    total = sum(parts.values())
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    return f"{gib(total)} ({listed})"


def changes(run: Run, model: MemoryModel, work: Workload, limit: int) -> list[Change]:
    """Of each setting its first halving that stays under `limit` bytes; where no setting alone
    does, all of them together, as far as they go."""
    single, together = list[Change](), work
    for halve in HALVINGS:
        steps = [*_halved(halve, work)]
        if steps and model.estimate(steps[-1]).peak <= limit:
            smaller, peak = next(
                (step, peak) for step in steps if (peak := model.estimate(step).peak) <= limit
            )
            single.append(Change(_overrides(run, work, smaller), smaller, peak))
        together = [together, *_halved(halve, together)][-1]
    if single or together == work:
        return single
    peak = model.estimate(together).peak
    return [Change(_overrides(run, work, together), together, peak)]


def _halved(halve: Halving, work: Workload) -> Iterator[Workload]:
    """The workload with a setting halved, halved again, down to its smallest."""
    smaller = halve(work)
    while smaller is not None:
        yield smaller
        smaller = halve(smaller)


def _overrides(run: Run, before: Workload, after: Workload) -> str:
    """The settings of a run that make the one workload the other, images of a step kept."""
    pairs = [
        ("train.gradient_checkpointing", "true", before.checkpointing != after.checkpointing),
        ("train.per_device_train_batch_size", after.batch, before.batch != after.batch),
        ("train.num_generations", after.num_generations, before.captions != after.captions),
        (
            "train.max_completion_length",
            after.max_new_tokens,
            before.max_new_tokens != after.max_new_tokens,
        ),
        (
            "policy.max_image_tokens",
            after.image_tokens,
            before.image_tokens != after.image_tokens,
        ),
    ]
    for key in ("gradient_accumulation_steps", "steps_per_generation"):
        count = run.train.get(key) or (1 if key == "gradient_accumulation_steps" else None)
        if count is not None:
            passes = count * before.batch * after.captions // (before.captions * after.batch)
            pairs.append((f"train.{key}", passes, passes != count))
    return " ".join(f"{key}={value}" for key, value, changed in pairs if changed)


def change_lines(found_changes: list[Change], limit: int) -> Iterator[str]:
    """A sentence for each change, with the peak it brings."""
    for change in found_changes:
        note = "" if change.peak <= limit else ", still too much: take a smaller model"
        yield f"{change.overrides}: peak {gib(change.peak)}{note}"


def _checkpointing(work: Workload) -> Workload | None:
    return None if work.checkpointing else replace(work, checkpointing=True)


def _batch(work: Workload) -> Workload | None:
    return None if work.batch % 2 else replace(work, batch=work.batch // 2)


def _completion(work: Workload) -> Workload | None:
    length = work.max_new_tokens // 2
    return None if length < MIN_COMPLETION else replace(work, max_new_tokens=length)


def _image(work: Workload) -> Workload | None:
    tokens = work.image_tokens // 2
    return None if tokens < MIN_IMAGE_TOKENS else work.with_image_tokens(tokens)


def _group(work: Workload) -> Workload | None:
    if work.num_generations % 2 or work.num_generations < 4:
        return None
    batch = work.batch // 2 if work.batch % 2 == 0 else work.batch
    return replace(work, num_generations=work.num_generations // 2, batch=batch)


# Each halves a setting, None where it can become no smaller; what changes learning comes last.
HALVINGS = (_checkpointing, _batch, _completion, _image, _group)
