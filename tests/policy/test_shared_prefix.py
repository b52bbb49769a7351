"""Captions packed behind their prompts against TRL: the same batch, numbers, gradients."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from torch.nn.attention import flex_attention
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from vizer_rl.algorithms import find, trl_sampling
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.config.trainer_settings import GRPOSettings, PPOSettings, trainer_arguments
from vizer_rl.policy import chat, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.lora import adapter_off, merged
from vizer_rl.policy.shared_prefix import attention
from vizer_rl.policy.shared_prefix.packing import unwrapped
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

G = 4
PPO, RLOO = find("ppo"), find("rloo")


def random_images(sizes, seed=0):
    make = torch.Generator().manual_seed(seed)
    return [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=make, dtype=torch.uint8).numpy())
        for w, h in sizes
    ]


def load_case(family, mixed):
    """The embedded policy; `mixed`: images are tiled (smolvlm), keep proportions (qwen2vl)."""
    model, processor = load.load_policy(family, "embedded", dtype="float32", image_splitting=mixed)
    if mixed and family == "smolvlm":
        processor.image_processor.size = {"longest_edge": 192}
    elif mixed:
        processor.image_processor.size = {"shortest_edge": 48 * 48, "longest_edge": 192 * 192}
    return model, processor


def rows_of(processor, mixed):
    sizes = [(96, 96), (190, 90), (60, 150)] if mixed else [(96, 96)] * 3
    questions = ["Describe the image.", "image", "Describe the image."]
    return [
        {"image_id": str(n), "image": image, "prompt": chat.messages(questions[n if mixed else 0])}
        for n, image in enumerate(random_images(sizes))
        for _ in range(G)
    ]


def completions(eos, seed=1):
    make = torch.Generator().manual_seed(seed)
    lengths = [3, 7, 1, 9, 2, 2, 5, 4, 11, 1, 6, 3]
    return [[*torch.randint(20, 500, (n - 1,), generator=make).tolist(), eos] for n in lengths]


def brevity(batch):
    return [(-1.0) ** n * len(c) for n, c in enumerate(batch.captions)]


def trainer(family, mixed, how, checkpointing, folder, packed, algorithm=GRPO, beta=0.1):
    """A trainer away from its reference; `packed`: ours with shared prompts, else as TRL computes,
    which is TRL's own class for GRPO and RLOO, and ours without features for PPO."""
    torch.manual_seed(5)
    model, processor = load_case(family, mixed)
    if how != "lora":
        model.requires_grad_(True)
        if how == "full, frozen tower":
            for name in FAMILIES[family].vision_modules:
                model.get_submodule(name).requires_grad_(False)
    lora = LoraConfig(
        r=4,
        target_modules=FAMILIES[family].lora,
        task_type="CAUSAL_LM",
        init_lora_weights=False,  # so that policy and reference differ
    )
    result = {
        "num_generations": G,
        "per_device_train_batch_size": 3 * G,
        "max_completion_length": 12,
        "gradient_checkpointing": checkpointing,
        "beta": beta,
        "temperature": 0.9,
        "log_completions": False,
    }
    if algorithm is not GRPO:  # scores as they are
        result["multi_objective_aggregation"] = "sum_then_normalize"
    config = PPOSettings if algorithm is PPO else GRPOSettings
    args = trainer_arguments(
        result, directory=folder, seed=3, weights=[1.0], report_to=[], config=config
    )
    eos = load.eos_ids(model, processor)
    scoring = RewardFunctions([Reward("brevity", 1.0, brevity)], None, None, eos, G)
    rows, lora = rows_of(processor, mixed), lora if how == "lora" else None
    dataset = Dataset.from_dict({"prompt": ["the rows are handed over"] * G})
    if packed or algorithm is PPO:
        cache = VisionCache(model, processor, FAMILIES[family]) if packed else None
        subject = algorithm(model, processor, lora, scoring, args, dataset, cache)
        subject._generate_single_turn = lambda *_: (completions(eos[0]), None)
    else:
        if algorithm is RLOO:
            del result["multi_objective_aggregation"]
            result |= {"bf16": False, "use_cpu": True, "report_to": []}
            args = RLOOConfig(**result, output_dir=str(folder))
        subject = (GRPOTrainer if algorithm is GRPO else RLOOTrainer)(
            model=model,
            reward_funcs=scoring.trl_functions(),
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            peft_config=lora,
        )
        captions = completions(eos[0])  # TRL's RLOO wants them without log-probs
        subject._generate_single_turn = lambda *_: (
            captions if algorithm is RLOO else (captions, None)
        )
    torch.manual_seed(6)  # a little away from the reference, both in the same way: far from it
    with torch.no_grad():  # the KL estimate is e to the 20, and rounding is all there is
        for p in subject.model.parameters():
            if p.requires_grad and how == "lora":
                p.mul_(0.3)
            elif p.requires_grad:
                p.add_(0.004 * torch.randn_like(p))
    subject.model.train()
    subject.current_gradient_accumulation_steps = 1
    return subject, rows


def step(subject, rows):
    """What the step's rollout gives, its loss, and the gradient of every weight that learns."""
    batch = subject._generate_and_score_completions(copy.copy(rows))
    loss = subject.compute_loss(subject.model, batch)
    loss.backward()
    grads = {n: p.grad for n, p in subject.model.named_parameters() if p.requires_grad}
    return batch, loss.detach(), grads


CASES = [
    ("smolvlm", False, "lora", False),
    ("smolvlm", True, "lora", True),
    ("qwen2vl", True, "lora", True),
    ("qwen2vl", False, "lora", False),
    ("smolvlm", True, "full", False),
    ("qwen2vl", True, "full", True),
    ("smolvlm", True, "full, frozen tower", False),
    ("qwen2vl", True, "full, frozen tower", False),
]


@pytest.mark.parametrize(("family", "mixed", "how", "checkpointing"), CASES)
def test_loss_and_gradients_are_stock_trls(family, mixed, how, checkpointing, tmp_path):
    ours, rows = trainer(family, mixed, how, checkpointing, tmp_path / "ours", True)
    stock, _ = trainer(family, mixed, how, checkpointing, tmp_path / "stock", False)
    (a, loss_a, grads_a), (b, loss_b, grads_b) = step(ours, rows), step(stock, rows)
    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"):
        assert torch.equal(a[name], b[name]), name
    assert torch.allclose(a["ref_per_token_logps"], b["ref_per_token_logps"], atol=1e-5, rtol=2e-6)
    same_loss(ours, loss_a, loss_b)
    alike(grads_a, grads_b)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_has_the_gradients_of_stock_trl_too(family, tmp_path, monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # no backward on CPUs
    ours, rows = trainer(family, True, "lora", True, tmp_path / "ours", True)
    stock, _ = trainer(family, True, "lora", True, tmp_path / "stock", False)
    unwrapped(ours.model).set_attn_implementation({"text_config": attention.KERNEL})
    with torch.compiler.set_stance("force_eager"):  # but as plain operations it has one
        a, loss_a, grads_a = step(ours, rows)
    b, loss_b, grads_b = step(stock, rows)
    assert torch.allclose(a["ref_per_token_logps"], b["ref_per_token_logps"], atol=1e-5, rtol=2e-6)
    same_loss(ours, loss_a, loss_b)
    alike(grads_a, grads_b)


def same_loss(ours, loss_a, loss_b):
    """The ratio is exactly 1: all rounding is the KL's, which the advantages may nearly cancel."""
    kl = ours._metrics["train"]["kl"][0]
    assert 1e-3 < kl < 50, "policy and reference: alike, or strangers"
    assert abs(loss_a - loss_b) <= 1e-5 * max(abs(loss_b), ours.beta * kl)


def alike(grads_a, grads_b):
    assert grads_a.keys() == grads_b.keys()
    largest = max(float(grad.norm()) for grad in grads_b.values() if grad is not None)
    assert largest > 0
    for name, grad in grads_b.items():
        if grad is None or grads_a[name] is None:
            assert grad is None or not grad.any(), name
            assert grads_a[name] is None or not grads_a[name].any(), name
            continue
        noise = 1e-7 * largest  # a key's bias has no gradient but rounding
        assert (grads_a[name] - grad).norm() <= 1e-4 * grad.norm() + noise, name


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_rloo_has_the_gradient_of_trls_own(family, tmp_path):
    """TRL's loss is of whole captions, ours of tokens over the most there may be: at the policy
    that sampled, one is a multiple of the other. Its KL is in the reward, so there is none."""
    result = (family, True, "lora", False, tmp_path)
    (ours, rows), (stock, _) = trainer(*result, True, RLOO, 0), trainer(*result, False, RLOO, 0)
    stock.model.load_state_dict(ours.model.state_dict())
    (a, _, grads_a), (b, _, grads_b) = step(ours, rows), step(stock, rows)
    assert torch.equal(a["completion_ids"], b["completion_ids"])
    assert torch.allclose(a["advantages"], b["advantages"], atol=1e-6)
    alike({name: ours.args.max_completion_length * g for name, g in grads_a.items()}, grads_b)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_ppo_behind_shared_prompts_is_ppo_in_rows_of_their_own(family, tmp_path):
    result = (family, True, "lora", True, tmp_path)
    (ours, rows), (stock, _) = trainer(*result, True, PPO), trainer(*result, False, PPO)
    stock.critic.head.load_state_dict(ours.critic.head.state_dict())
    (a, loss_a, grads_a), (b, loss_b, grads_b) = step(ours, rows), step(stock, rows)
    for name in ("old_per_token_logps", "old_values", "advantages", "returns"):
        present = b["completion_mask"].bool()
        assert torch.allclose(a[name][present], b[name][present], atol=1e-5, rtol=1e-5), name
    assert a["old_values"].std() > 0
    assert abs(loss_a - loss_b) <= 1e-5 * abs(loss_b)
    alike(
        grads_a | {n: p.grad for n, p in ours.critic.head.named_parameters()},
        grads_b | {n: p.grad for n, p in stock.critic.head.named_parameters()},
    )


def test_old_log_probs_come_from_sampling_where_the_policy_is_the_same(tmp_path):
    subject, rows = trainer("smolvlm", False, "lora", False, tmp_path, True)
    del subject._generate_single_turn
    subject.args.steps_per_generation = 3
    batch = subject._generate_and_score_completions(rows)
    with torch.no_grad():
        now = subject.caption_forward(subject.model, batch).logps
    assert torch.allclose(batch["old_per_token_logps"], now, atol=1e-5)
    assert not torch.allclose(batch["ref_per_token_logps"], now, atol=1e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_rollout_as_on_cuda_samples_the_same_and_settles_on_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(trl_sampling, "MIN_FLEX_LENGTH", 8)
    batches = []
    for cuda in (False, True):
        subject, rows = trainer("smolvlm", True, "lora", False, tmp_path, True)
        del subject._generate_single_turn
        subject.vision_cache.cuda, subject._attention_chosen = cuda, not cuda
        torch.manual_seed(7)
        with torch.compiler.set_stance("force_eager"):
            batches.append(subject._generate_and_score_completions(rows))
        assert (f"engine/attention_seconds/{attention.KERNEL}" in subject._metrics["train"]) is cuda
    growing, fixed = batches
    assert torch.equal(growing["completion_ids"], fixed["completion_ids"])
    assert torch.allclose(growing["ref_per_token_logps"], fixed["ref_per_token_logps"], atol=1e-4)


def test_a_trainer_without_a_compiler_stays_on_sdpa_and_trains(tmp_path, monkeypatch):
    def no_compiler():
        raise ImportError("Failed to find C compiler")

    monkeypatch.setattr(attention, "flex", no_compiler)
    monkeypatch.setattr(trl_sampling, "MIN_FLEX_LENGTH", 8)
    made, rows = trainer("smolvlm", True, "lora", False, tmp_path, True)
    del made._generate_single_turn
    made.vision_cache.cuda = True
    with pytest.warns(UserWarning, match="stays on sdpa") as caught:
        batches = [made._generate_and_score_completions(rows) for _ in range(2)]
    assert len([w for w in caught if "stays on sdpa" in str(w.message)]) == 1
    for model in (made.model, made.ref_model):
        assert model is None or not attention.uses_block_mask(unwrapped(model))
    names = [n for n in made._metrics["train"] if n.startswith("engine/attention_seconds/")]
    assert names == ["engine/attention_seconds/sdpa"]
    with made.accelerator.accumulate(made.model):
        assert made._compute_loss(made.model, batches[-1]).isfinite()


def test_hidden_states_and_entropies_are_those_of_rows_of_their_own(tmp_path):
    subject, rows = trainer("qwen2vl", True, "lora", False, tmp_path, True)
    with torch.no_grad():
        batch = subject._generate_and_score_completions(rows)
        ours = subject.caption_forward(subject.model, batch)
        subset = torch.tensor([9, 3, 4])  # parts of groups, in any order
        part = {k: v[subset] for k, v in batch.items() if v.ndim}
        few = subject.caption_forward(subject.model, part)
        subject.vision_cache = None
        batch = subject._generate_and_score_completions(rows)
        stock = subject.caption_forward(subject.model, batch)
    present = batch["completion_mask"].bool()
    for a, b in zip(ours, stock, strict=True):
        assert torch.allclose(a[present], b[present], atol=2e-5)
    assert torch.allclose(few.logps, ours.logps[subset], atol=1e-5)
    assert torch.allclose(few.hidden, ours.hidden[subset], atol=2e-5)
    assert torch.allclose(few.entropies, ours.entropies[subset], atol=2e-5)


def test_the_adapter_is_merged_and_taken_out_again_to_the_last_bit(tmp_path):
    subject, _ = trainer("smolvlm", False, "lora", False, tmp_path, True)
    model, ids = subject.model, torch.arange(20, 30)[None]
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        plain = model(input_ids=ids).logits
        with merged(model):
            quick = model(input_ids=ids).logits
        assert torch.allclose(plain, quick, atol=1e-5)
        assert not torch.allclose(plain, base, atol=1e-2)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n in before if "lora_" in n}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_adapter_is_off_in_the_model_and_in_the_base_that_it_wraps(tmp_path):
    subject, _ = trainer("smolvlm", False, "lora", False, tmp_path, True)
    model, ids = subject.model.eval(), torch.arange(20, 30)[None]
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        for module in (model, model.get_base_model()):
            with adapter_off(module):
                assert torch.equal(module(input_ids=ids).logits, base)
        assert torch.equal(model(input_ids=ids).logits, adapted)
    assert not torch.allclose(adapted, base, atol=1e-2)
