"""Our GRPO against stock TRL: same seed, images and rewards, bit-equal adapters."""

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer

from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.config.load import load_run
from vizer_rl.config.trainer_settings import trainer_arguments
from vizer_rl.data import dataset, sources
from vizer_rl.policy import chat, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions
from vizer_rl.training import splits

from ..conftest import REPO, TINY
from ..policy.test_generation_settings import greedy_checkpoint


def brevity(batch):
    return [-float(len(caption)) for caption in batch.captions]


def adapter(trainer):
    return {n: p.detach() for n, p in trainer.model.named_parameters() if "lora_" in n}


def pieces(run, folder, checkpoint="embedded", reward=brevity):
    args = trainer_arguments(run.train, directory=folder, seed=3, weights=[1.0], report_to=[])
    model, processor = load.load_policy(run.family, str(checkpoint), dtype="float32")
    eos = load.eos_ids(model, processor)
    scoring = RewardFunctions(
        [Reward("brevity", 1.0, reward)], None, None, eos, args.num_generations
    )
    images = sources.ImageFolder.index(splits.SCENES / "train" / "images", 40)
    rows = dataset.rows(images, chat.messages(run.data.prompt))
    lora = LoraConfig(r=4, target_modules=FAMILIES[run.family].lora, task_type="CAUSAL_LM")
    return args, model, processor, scoring, rows, lora


def test_two_steps_are_bit_equal_to_stock_trl(workplace, tmp_path):
    run = load_run(REPO / "experiments/smolvlm.yaml", TINY)
    args, model, processor, scoring, rows, lora = pieces(run, tmp_path / "ours")
    ours = GRPO(model, processor, lora, scoring, args, rows)
    ours.train()
    args, model, processor, scoring, rows, lora = pieces(run, tmp_path / "stock")
    args.generation_kwargs = {"suppress_tokens": load.forbidden_ids(model, processor)}
    args.log_completions = False
    stock = GRPOTrainer(
        model=model,
        reward_funcs=scoring.trl_functions(),
        args=args,
        train_dataset=rows,
        processing_class=processor,
        peft_config=lora,
    )
    stock.train()
    one, two = adapter(ours), adapter(stock)
    assert one.keys() == two.keys()
    assert any(n.endswith("lora_B.default.weight") and p.abs().sum() > 0 for n, p in one.items())
    assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    ("family", "shared"), [("smolvlm", True), ("smolvlm", False), ("qwen2vl", True)]
)
def test_a_checkpoints_generation_settings_do_not_reach_training(
    family, shared, workplace, tmp_path
):
    run, results = load_run(REPO / f"experiments/{family}.yaml", TINY), []
    for n, checkpoint in enumerate(("embedded", greedy_checkpoint(family, tmp_path / family))):
        captions = []

        def reward(batch, captions=captions):
            captions.extend(batch.captions)
            return brevity(batch)

        folder = tmp_path / str(n)
        args, model, processor, *rest, lora = pieces(run, folder, checkpoint, reward)
        cache = VisionCache(model, processor, FAMILIES[family]) if shared else None
        scoring, rows = rest
        trainer = GRPO(model, processor, lora, scoring, args, rows, cache)
        trainer.train()
        results.append((captions, adapter(trainer)))
    (plain, weights), (with_settings, same_weights) = results
    assert len(set(plain)) > 1
    assert with_settings == plain
    assert all(torch.equal(weights[n], same_weights[n]) for n in weights)
