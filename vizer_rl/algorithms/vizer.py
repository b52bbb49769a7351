"""ViZer (arXiv 2510.12931), the paper this project answers: no reward, only its loss.

Stage 1 trains the mapper on captions of the frozen policy (ViZer_G) or on given ones (ViZer_GT);
stage 2 is GRPO's machinery with every advantage 0, so that the loss is 1 - cos (vizer_loss.py) and
beta times the KL to the reference. The paper tells of no KL: `train.beta=0` is the paper's. The
rewards of the run file are logged as metrics and move nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rewards.lib.mapper import Mapper, kept

from ..config.schema import Mapper as Settings
from ..config.trainer_settings import ViZerSettings
from ..data import caption_file
from ..errors import UserError
from ..policy import captioner
from ..policy.hidden_states import caption_tokens, token_states
from .aligned import Aligned
from .alignment_loss import AlignmentLoss, ImageFeatures, connector_features, pooled, settings_told

COLLAPSED = 0.05  # variance of mapped directions as a share of the targets': below, it is noise
AT_ONCE = 32  # captions read at a time
SAVED = "mapper.pt"  # in the run directory


class Pictures(Protocol):
    """Images with their ids, decoded when indexed; a list of rows gives some of them."""

    ids: list[str]

    def __getitem__(self, index: Any) -> Any: ...


class ViZer(Aligned):
    """GRPO's trainer without advantages: ViZer's loss and the KL are all there is."""

    Config = ViZerSettings

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = torch.zeros_like(output["advantages"])
        return output


class Stage1:
    """Trains the mapper of a run, or takes up the one that the run has kept."""

    def __init__(
        self, model: Any, processor: Any, features: ImageFeatures, settings: Settings, prompt: str
    ) -> None:
        """model: the PeftModel; features: of the vision tower; prompt: asked of every image."""
        self.model, self.processor, self.prompt = model, processor, prompt
        self.settings = settings
        to_connector = settings.target == "connector"
        self.features = connector_features(model, processor) if to_connector else features

    def alignment(
        self, images: Pictures, directory: Path, max_new_tokens: int, console: Console
    ) -> AlignmentLoss:
        """The loss with its mapper; UserError where the mapper has collapsed."""
        path, told = directory / SAVED, settings_told(self.settings)
        if path.is_file():
            mapper, known = kept(path, self.model.device)
            if {k: known[k] for k in told} != told:
                raise UserError(f"{path} was trained with other settings than mapper has now")
        else:
            said = self._captions(images, max_new_tokens, console)
            mapper, matching = self._fit(images, said, console)
            about = {"matching": matching, **told}
            torch.save({"mapper": mapper.state_dict(), **about}, path)
        return AlignmentLoss(mapper, self.features, self.settings.reading, self.settings.pooling)

    def _captions(self, images: Pictures, length: int, console: Console) -> dict[int, list[int]]:
        """Image number -> caption's token ids, of at most `mapper.images` images."""
        ids, most = images.ids, self.settings.images
        if self.settings.source == "captions":
            path = Path(str(self.settings.captions))
            told = caption_file.read(path, ids)
            console.print(
                f"[bold red]CAPTIONS ARE READ[/]: {len(told)} of {path} (mapper.source). "
                "What this run learns is not label-free."
            )
            rows_of = {name: row for row, name in enumerate(ids)}
            chosen = _some(list(told), most)
            return {
                rows_of[n]: caption_tokens(self.processor, self.prompt, told[n]) for n in chosen
            }
        rows = _some(range(len(ids)), most)
        with self.model.disable_adapter():
            said = captioner.caption(
                self.model,
                self.processor,
                images[rows],
                self.prompt,
                max_new_tokens=length,
                temperature=1.0,
            )
        return {row: caption.ids for row, caption in zip(rows, said, strict=True)}

    def _fit(
        self, images: Pictures, said: dict[int, list[int]], console: Console
    ) -> tuple[Mapper, float]:
        """A mapper trained on these captions, and its matching accuracy on pairs it never saw."""
        rows, settings = list(said), self.settings
        if len(rows) < 16:
            raise UserError(f"ViZer's mapper needs captions of 16 training images, not {len(rows)}")
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        with self.model.disable_adapter(), torch.no_grad():
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                pictures = [images[row] for row in some]
                hidden, mask = token_states(
                    self.model, self.processor, pictures, self.prompt, [said[r] for r in some]
                )
                states = pooled(self.model, hidden, mask, settings.reading, settings.pooling)
                parts.append((states, self.features([images.ids[row] for row in some], pictures)))
        states, features = (torch.cat(some) for some in zip(*parts, strict=True))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            mapper = Mapper(states.shape[1], features.shape[1], settings.width).to(states.device)
        with _progress(console, settings.steps) as advance:
            matching = mapper.fit(
                states, features, settings.steps, settings.learning_rate, told=advance
            )
        variance = mapper.variance(states, features)
        console.print(
            f"ViZer's mapper: {len(rows)} captions ({settings.source}), loss "
            f"{1 - mapper.cosine(states, features).mean():.3f}, held-out matching {matching:.3f} "
            f"(chance .5), variance {variance:.3f} of the images'"
        )
        if variance < COLLAPSED:
            raise UserError(
                f"ViZer's mapper has collapsed: the directions it gives to {len(rows)} images have "
                f"{variance:.3f} of the variance of the images' own (at least {COLLAPSED} is "
                "needed); give it more mapper.steps, or another mapper.reading or pooling"
            )
        return mapper, matching


def _some(population: Sequence[Any], most: int) -> list[Any]:
    """At most so many, in order; which ones does not depend on the run's seed."""
    chosen = random.Random(0).sample(range(len(population)), min(most, len(population)))
    return [population[k] for k in sorted(chosen)]


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[float], None]]:
    """A progress bar; what it yields is told the loss after each update."""
    columns = (TextColumn("mapper"), MofNCompleteColumn(), BarColumn(bar_width=24))
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*columns, loss, console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, loss=1.0)
        yield lambda loss: bar.update(task, advance=1, loss=loss)
