"""Settings of a run: the typed schema of a run file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
)


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError("a plain folder name of letters, digits, '.', '_' and '-'")
    return name


def _image_sources(value: object) -> object:
    several = value.items() if isinstance(value, dict) else ()
    weights = all(isinstance(key, str) and type(w) in (int, float) for key, w in several)
    if value is None or isinstance(value, str):
        return value
    if several and weights and all(0 < weight < math.inf for _, weight in several):
        return {source: float(weight) for source, weight in several}
    raise ValueError("text, or a mapping of sources to weights above 0")


Recipe = Literal["faithful", "balanced", "descriptive"]
ImageSources = str | dict[str, float] | None
READ_OFF = BeforeValidator(lambda value: "off" if value is False else value)  # YAML 1.1's off


class Section(BaseModel):
    """One section of a run file: typed, immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lora(Section):
    r: int = Field(default=16, ge=1, description="rank of the adapter")
    alpha: int = Field(
        default=32, ge=1, description="the adapter's output is multiplied by alpha / r"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the adapter")


class TrainedParts(Section):
    """Each: `off`, `lora`, or `full`, all its weights, at a tenth of train.learning_rate."""

    vision: Annotated[Literal["off", "lora", "full"], READ_OFF] = Field(
        default="off", description="the vision tower; every pass encodes the image then"
    )
    connector: Annotated[Literal["off", "lora", "full"], READ_OFF] = Field(
        default="off", description="what lies between tower and language model"
    )
    language: Annotated[Literal["off", "lora", "full", "qlora"], READ_OFF] = Field(
        default="lora", description="qlora: LoRA on weights of 4 bits, by bitsandbytes"
    )


class Policy(Section):
    model: str = Field(description="`embedded` (ships with the package), a folder or a hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of the frozen weights; auto: bfloat16 where CUDA has it"
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="attention kernel; auto: sdpa, which a shared prefix needs"
    )
    image_splitting: bool = Field(
        default=False, description="tile large images, for more detail, where a family has tiles"
    )
    max_image_tokens: int | None = Field(
        default=None,
        ge=1,
        description="of an image, all tiles; null: Qwen 512, others their processor's own",
    )
    instruct: bool | None = Field(
        default=None, description="answers questions; null: where its name says Instruct"
    )
    lora: Lora = Field(default=Lora(), description="the adapter, where a part says lora")
    train: TrainedParts = Field(default=TrainedParts(), description="which parts learn, and how")


class Data(Section):
    images: Annotated[ImageSources, PlainValidator(_image_sources)] = Field(
        default=None,
        description="any source of docs/images.md, or {source: weight}; null: the drawn scenes",
    )
    prompt: str = Field(default="Describe the image.", description="the prompt for every image")
    limit: int | None = Field(default=None, ge=1, description="maximum number of training images")
    heldout: int = Field(default=500, ge=1, description="held-out images, for evaluation")


class Scorer(Section):
    """Each: `embedded:a`, `embedded:b`, `local-dir:PATH` or open_clip's `ARCHITECTURE/TAG`."""

    train: str = Field(description="the image-text model that rewards use")
    heldout: str = Field(description="the model that only monitor and evaluation use")


class Mapper(Section):
    """ViZer's mapper, from caption states to image features, for `train.alignment_coef`."""

    source: Literal["generated", "captions"] = Field(
        default="generated", description="captions it learns from: the policy's own or given ones"
    )
    captions: str | None = Field(
        default=None, description="jsonl of {image_id, caption}; only with `source: captions`"
    )
    reading: Literal["loose", "literal"] = Field(
        default="loose",
        description="caption states with the image in context, or of the caption alone",
    )
    pooling: Literal["mean", "last"] = Field(
        default="mean", description="of the states of a caption's tokens"
    )
    target: Literal["tower", "connector"] = Field(
        default="tower", description="image features: before or after the connector"
    )
    width: int = Field(default=256, ge=1, description="of its hidden layer")
    images: int = Field(default=10_000, ge=16, description="maximum number, one caption each")
    steps: int = Field(default=400, ge=1, description="full-batch updates")
    learning_rate: float = Field(default=2e-3, gt=0, description="of those updates")


class Monitor(Section):
    interval: int = Field(
        default=10, ge=0, description="steps between held-out evaluations; 0: first and last"
    )
    images: int = Field(default=64, ge=1, description="held-out images per evaluation")
    keep: Literal["best", "last"] = Field(
        default="best",
        description="the adapter that is saved: the last that the held-out scorer does not find "
        "clearly worse than the best so far (2 standard errors, no fewer doubtful words), or last",
    )
    on_alarm: Literal["warn", "stop", "rollback"] = Field(
        default="warn",
        description="on signs of reward hacking: say so; end with a checkpoint; or keep the best",
    )
    audit: bool = Field(default=True, description="a short audit of the rewards before training")


class Engine(Section):
    shared_prefix: Annotated[Literal["auto", "off"], READ_OFF] = Field(
        default="auto",
        description="auto: image and prompt are computed once per group; off: as TRL does",
    )
    cuda: Annotated[Literal["auto", "off"], READ_OFF] = Field(
        default="auto",
        description="auto: sampling as a CUDA graph, FlexAttention where faster; off: neither",
    )
    vision_cache: str | None = Field(
        default=None, description="folder of cached vision features; null: in memory only"
    )


TRACKERS = ("wandb", "trackio", "tensorboard", "mlflow")  # each is the name of its package too


class Tracking(Section):
    wandb: Annotated[Literal["auto", "online", "offline", "off"], READ_OFF] = Field(
        default="auto", description="Weights & Biases; auto: online when logged in, else offline"
    )
    report_to: list[str] = Field(
        default=["wandb"],
        description="trackers: wandb and, through transformers, trackio, tensorboard, mlflow",
    )
    project: str = Field(default="vizer_rl", description="the project of W&B and trackio")
    max_mb: float = Field(
        default=25,
        ge=0,
        description="megabytes that a run sends to W&B at most; its curves come first",
    )


class Run(Section):
    """All settings of one run, resolved: the profile is chosen, its overlay applied."""

    family: str = Field(description="a key of vizer_rl.policy.families.FAMILIES")
    algorithm: str = Field(default="grpo", description="a key of vizer_rl.algorithms.ALGORITHMS")
    profile: Literal["scenes", "full"] = Field(description="the profile whose overlay was applied")
    name: Annotated[str, AfterValidator(_folder_name)] = Field(description="runs/NAME is written")
    seed: int = Field(default=0, ge=0, description="seeds adapter, sampling and choice of images")
    policy: Policy = Field(description="the model that is trained")
    data: Data = Field(default=Data(), description="the images")
    scorer: Scorer = Field(description="the image-text models")
    recipe: Recipe | None = Field(
        default=None, description="adds rewards.certainty: how sure a word must be to be said"
    )
    rewards: dict[str, dict[str, Any]] = Field(description="{name: {weight: 1.0, parameter: …}}")
    train: dict[str, Any] = Field(
        default={},
        description="fields of trl.GRPOConfig, and the algorithm's (trainer_settings.py)",
    )
    mapper: Mapper = Field(default=Mapper(), description="of ViZer's loss")
    monitor: Monitor = Field(default=Monitor(), description="held-out evaluation while training")
    engine: Engine = Field(default=Engine(), description="how a step is computed")
    tracking: Tracking = Field(default=Tracking(), description="where the curves go")
    _why_profile: str = PrivateAttr("")

    def model_post_init(self, context: Any) -> None:
        self._why_profile = (context or {}).get("why_profile", "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.model_dump() == other.model_dump()

    @property
    def why_profile(self) -> str:
        """One line: the chosen profile and why."""
        return self._why_profile

    @property
    def directory(self) -> Path:
        """Where the run is written."""
        return Path("runs") / self.name

    @property
    def reward_scorers(self) -> list[str]:
        """Names of the image-text models that rewards use: the training scorer, and their own."""
        own = [s.get(key) for s in self.rewards.values() for key in ("encoder", "neighbours")]
        names = [name for name in own if isinstance(name, str) and name != "policy"]
        return [self.scorer.train, *names]

    def to_yaml(self) -> str:
        """The run file from which `load_run` makes an equal Run, on any machine."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)
