"""vLLM probe: log-probs of a stand-in that is right, off by more than the bound, or wrong.

vLLM is not installed here. The stand-in has the interface of TRL's VLLMGeneration, and computes
log-probs by the forward of transformers alone, one row per caption, nothing shared.
"""

import json

import pytest
import torch
from trl.trainer import grpo_trainer

from vizer_rl import cli
from vizer_rl.algorithms import vllm_probe
from vizer_rl.data.scenes import render, sample
from vizer_rl.errors import UserError
from vizer_rl.policy import captioner, load
from vizer_rl.policy.shared_prefix.packing import unwrapped
from vizer_rl.scoring.reference_policy import ReferencePolicy

from ..conftest import REPO, TINY

G, TEMPERATURE = 2, 0.9
FAMILY = "qwen2vl"


class Settings:
    """What the probe reads of TRL's config."""

    num_generations, temperature = G, TEMPERATURE
    top_p, top_k, min_p, repetition_penalty = 1.0, 0, None, 1.0
    vllm_server_base_url, vllm_server_host, vllm_server_port = None, "0.0.0.0", 8000
    vllm_server_timeout, use_vllm, vllm_mode = 240.0, True, "server"


class StandIn:
    """Sampled captions with log-probs; `change` alters those of a row, `see` the images."""

    def __init__(self, model, processor, temperature, change=list, see=list, captions=None, **_):
        self.model, self.processor, self.temperature = model, processor, temperature
        self.change, self.see, self.captions = change, see, captions

    def sync_weights(self):
        """Its weights are the policy's own."""

    @torch.no_grad()
    def generate(self, prompts, images, num_generations, profiler=None):
        pictures = self.see([image for (image,) in images])
        completions = self.captions or [[20 + row % 50, 40, 60] for row in range(len(prompts))]
        training = self.model.training
        self.model.eval()
        rows = zip(prompts, completions, pictures, strict=True)
        logps = [self.change([[x] for x in self.row(*row)]) for row in rows]
        self.model.train(training)
        return prompts, completions, logps, None

    def row(self, prompt, completion, picture):
        inputs = self.processor.image_processor(images=[picture], return_tensors="pt")
        ids = torch.tensor([prompt + completion])
        kinds = (ids == self.processor.image_token_id).int()
        logits = unwrapped(self.model)(input_ids=ids, mm_token_type_ids=kinds, **inputs).logits
        logps = (logits[0, len(prompt) - 1 : -1].float() / self.temperature).log_softmax(-1)
        return logps.gather(-1, torch.tensor(completion)[:, None])[:, 0].tolist()


def pictures():
    sides = [(96, 96), (96, 96), (48, 96), (48, 96)]
    return [render(sample(k)).resize(side) for k, side in enumerate(sides)]


@pytest.fixture(scope="module")
def policy():
    """A reference, images, and captions that it has sampled of each of them, G a piece."""
    model, processor = load.load_policy(FAMILY, "embedded", dtype="float32")
    reference = ReferencePolicy(model, processor, "embedded", max_new_tokens=12)
    images = pictures()
    torch.manual_seed(0)
    repeated = [image for image in images for _ in range(G)]
    sampled = captioner.caption(
        model, processor, repeated, reference.prompt, max_new_tokens=12, temperature=TEMPERATURE
    )
    return reference, images, [caption.ids for caption in sampled]


def probe(policy, settings=Settings, **stand_in):
    reference, images, captions = policy
    generation = StandIn(
        reference.model, reference.processor, TEMPERATURE, captions=captions, **stand_in
    )
    return vllm_probe.probe(generation, reference, images, settings)


def refusal(*args, **stand_in):
    with pytest.raises(UserError) as refused:
        probe(*args, **stand_in)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def by(nats):
    return lambda row: [[value[0] + nats] for value in row]


def test_a_sampler_that_is_right_passes(policy):
    tokens = sum(map(len, policy[2]))
    expected = "vLLM agrees with the policy: log-probs of its captions differ by 0.000 nats a token"
    assert probe(policy) == f"{expected} ({tokens} tokens, 4 images; allowed: 0.1)"
    assert "differ by 0.050 nats a token" in probe(policy, change=by(0.05))


def test_one_that_is_off_by_more_than_the_bound_is_refused(policy):
    message = refusal(policy, change=by(-0.2))
    assert "train.use_vllm: vLLM's log-probs of its captions differ from the policy's by" in message
    assert "0.200 nats a token" in message
    assert "it reads another prompt, other images or other weights" in message


def test_one_that_sees_other_images_is_refused(policy):
    other = [image.rotate(180) for image in pictures()]
    turned = refusal(policy, see=lambda images: [other[row // G] for row in range(len(images))])
    assert "it reads another prompt, other images or other weights" in turned


def test_one_at_another_temperature_is_refused(policy):
    reference, images, captions = policy
    cold = StandIn(reference.model, reference.processor, 0.3, captions=captions)
    with pytest.raises(UserError, match="differ from the policy's"):
        vllm_probe.probe(cold, reference, images, Settings)


def test_settings_that_cut_the_distribution_are_named(policy):
    class Cut(Settings):
        top_p, repetition_penalty = 0.9, 1.1

    message = refusal(policy, Cut, change=by(0.3))
    assert "by train.top_p, train.repetition_penalty, which have to stay at their defau" in message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda row: row[:-1], "log-probs for the"),
        (lambda row: [[None]] * len(row), "gave no log-prob for a token that it sampled"),
        (by(float("nan")), "differ from the policy's by nan"),
    ],
)
def test_log_probs_that_are_missing_are_told(policy, change, sentence):
    assert sentence in refusal(policy, change=change)


def test_none_at_all_are_told_too(policy):
    reference, images, captions = policy
    silent = StandIn(reference.model, reference.processor, TEMPERATURE, captions=captions)
    silent.generate = lambda prompts, **_: (prompts, captions, None, None)
    with pytest.raises(UserError, match="vLLM gave 0 log-probs for the"):
        vllm_probe.probe(silent, reference, images, Settings)


def test_a_server_that_does_not_answer_is_named():
    sentence = "no vLLM server answers at http://0.0.0.0:8000 within 240 s"
    with pytest.raises(UserError, match=sentence), vllm_probe.server_named(Settings):
        raise ConnectionError("refused")


@pytest.mark.parametrize("more", [{"use_vllm": False}, {"vllm_mode": "colocate"}])
def test_a_run_without_a_server_has_other_connections_that_fail(more):
    settings = type("Other", (Settings,), more)
    with pytest.raises(ConnectionError, match="refused"), vllm_probe.server_named(settings):
        raise ConnectionError("refused")


def run(name, family=FAMILY):
    words = ["train", str(REPO / "experiments" / f"{family}.yaml"), *TINY, f"name={name}"]
    words += ["data.limit=24", "data.heldout=4", "monitor.images=2", "rewards.alignment=null"]
    return cli.main([*words, "train.use_vllm=true", "train.max_steps=1", "--overwrite"])


def test_vllm_that_is_not_installed_is_told_before_anything_is_loaded(
    workplace, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    assert run("no-vllm") == 2
    error = capsys.readouterr().err
    assert error.startswith("vizer_rl: train.use_vllm: vLLM is not installed")
    assert error.count("\n") == 1
    assert not (workplace / "runs" / "no-vllm").exists()


def test_a_family_that_it_breaks_is_refused_with_the_reason(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert run("broken", "smolvlm") == 2
    assert "allowed: false, for vLLM breaks smolvlm's prompts (trl#6294)" in capsys.readouterr().err


def test_a_run_probes_first_and_then_samples_with_it(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(vllm_probe, "is_vllm_available", lambda: True)

    def make(model, processing_class, temperature, **_):
        return StandIn(model, processing_class, temperature)

    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", make)
    assert run("with-vllm") in (0, None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "vLLM agrees with the policy: log-probs of its captions differ by 0.000" in printed
    (row,) = map(json.loads, (workplace / "runs/with-vllm/metrics.jsonl").read_text().splitlines())
    assert row["sampling/sampling_logp_difference/max"] < 1e-3

    def off(model, processing_class, temperature, **_):
        return StandIn(model, processing_class, temperature, by(1.0))

    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", off)
    assert run("off-vllm") == 2
    assert "vLLM's log-probs of its captions differ" in capsys.readouterr().err
