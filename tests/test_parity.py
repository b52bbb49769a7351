"""Our GRPO against stock TRL: same seed, images and rewards, bit-equal adapters."""

import torch
from peft import LoraConfig
from trl import GRPOTrainer

from vizer_rl import data, image_sets, policy
from vizer_rl.algorithms.grpo import GRPO, arguments
from vizer_rl.config import load
from vizer_rl.families import FAMILIES
from vizer_rl.scoring import Reward, Scoring

from .conftest import REPO, TINY


def brevity(batch):
    return [-float(len(caption)) for caption in batch.captions]


def adapter(trainer):
    return {n: p.detach() for n, p in trainer.model.named_parameters() if "lora_" in n}


def pieces(run, folder):
    args = arguments(run.train, directory=folder, seed=3, weights=[1.0], report_to=[])
    model, processor = policy.load(run.family, run.policy)
    eos = policy.eos_ids(model, processor)
    scoring = Scoring([Reward("brevity", 1.0, brevity)], None, None, eos, args.num_generations)
    images = data.ImageFolder.index(image_sets.SCENES / "train" / "images", 40)
    rows = data.rows(images, policy.messages(run.data.prompt))
    lora = LoraConfig(r=4, target_modules=FAMILIES[run.family].lora, task_type="CAUSAL_LM")
    return args, model, processor, scoring, rows, lora


def test_two_steps_are_bit_equal_to_stock_trl(workplace, tmp_path):
    run = load(REPO / "experiments/smolvlm.yaml", TINY)
    args, model, processor, scoring, rows, lora = pieces(run, tmp_path / "ours")
    ours = GRPO(model, processor, lora, scoring, args, rows, [])
    ours.train()
    args, model, processor, scoring, rows, lora = pieces(run, tmp_path / "stock")
    args.generation_kwargs = {"suppress_tokens": policy.forbidden_ids(model, processor)}
    args.log_completions = False
    stock = GRPOTrainer(
        model=model,
        reward_funcs=scoring.functions(),
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
