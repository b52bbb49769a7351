# Entry points: `make` lists targets and variables. Works with GNU make 3.81, which macOS ships.
.PHONY: help train-smolvlm train-qwen2vl caption scenes-assets test test-slow test-faults check bench paper setup
.DEFAULT_GOAL := help

#: IMAGES=   folder, glob, archive, table, hf:NAME (data.images; docs/images.md; default: scenes)
#: MODEL=    a checkpoint: hub name or folder     (policy.model; HuggingFaceTB/SmolVLM-256M-Base is small)
#: PROFILE=  auto, scenes or full                 (profile; auto is full where there is CUDA)
#: NAME=     the run is runs/NAME                 (name; unset: the run file's, overwritten each time)
#: SEED=     random seed, from 0                  (seed)
#: RUN=      make caption: the run that captions, runs/RUN
#: OUT=      make caption: sidecar (default), jsonl, csv, parquet or metadata.jsonl
#: SWEEP=    lr: 100 steps at a third, the whole and three times the rate (train --sweep; resumes)
#: DEVICES=  so many devices of this machine    (train --devices; docs/scale.md)
#: ACCELERATE= a file of experiments/accelerate: fsdp2, zero2, zero3 (default: DDP; train --accelerate)
#: ARGS=     any other settings: ARGS="train.max_steps=20 policy.lora.r=8"
#: FLAGS=    flags of vizer-rl: FLAGS=--resume
#: CASES=    make bench: embedded, shaped, scaling, real or one case (default: all that can run here)
#: COCO=     make paper: COCO 2014, its folders train2014, val2014 and annotations
#: KARPATHY= make paper: Karpathy's split, dataset_coco.json
#: CC3M=     make paper: a folder of CC3M's validation images
#: PYTHON=   the Python of .venv                  (3.11, 3.12 or 3.13; used by the first call)

# WSL exports NAME, the host name: only `make … NAME=x` counts.
ifeq ($(origin NAME),environment)
NAME :=
endif

quote = '$(subst ','\'',$(1))'
setting = $(if $(strip $(2)),$(call quote,$(1)=$(2)) )
path = $(if $(strip $(2)),$(1) $(call quote,$(2)) )
OVERRIDES = $(call setting,data.images,$(IMAGES))$(call setting,policy.model,$(MODEL))$(\
)$(call setting,profile,$(PROFILE))$(call setting,name,$(NAME))$(\
)$(call setting,seed,$(SEED))$(ARGS)
# A named run is never overwritten by default. Without NAME the run has the run file's own name and
# is a demo, which is overwritten so that `make train-smolvlm` works twice in a row, but not where it
# was stopped on its way. A sweep goes on where it was stopped.
NAMED = $(strip $(NAME)$(SWEEP)$(filter name=%,$(ARGS))$(FLAGS))
LAUNCH = $(call path,--devices,$(DEVICES))$(call path,--accelerate,$(ACCELERATE))
RUN_FLAGS = $(LAUNCH)$(if $(SWEEP),--sweep $(call quote,$(SWEEP)) )$(if $(NAMED),$(FLAGS),--overwrite-finished)
# The small models have settings of their own.
SMOLVLM = $(if $(findstring 256M,$(MODEL))$(findstring 500M,$(MODEL)),smolvlm-256m,smolvlm)
OFFLINE = HF_HUB_OFFLINE=1 WANDB_MODE=offline

help: ## list targets and variables
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile
	@echo "Variables:"
	@sed -n 's/^#: /  /p' Makefile

train-smolvlm: setup ## train SmolVLM to caption your images without labels
	.venv/bin/vizer-rl train experiments/$(SMOLVLM).yaml $(OVERRIDES) $(RUN_FLAGS)

train-qwen2vl: setup ## the same for Qwen2-VL
	.venv/bin/vizer-rl train experiments/qwen2vl.yaml $(OVERRIDES) $(RUN_FLAGS)

caption: setup ## caption IMAGES= by RUN= or MODEL=: a text file beside each
	.venv/bin/vizer-rl caption $(if $(strip $(IMAGES)),$(call quote,$(IMAGES)) )$(\
	)$(call path,--run,$(RUN))$(call path,--model,$(MODEL))$(\
	)--out $(call quote,$(if $(strip $(OUT)),$(OUT),sidecar)) $(FLAGS)

test: setup ## fast tests, offline, on two CPU cores
	$(OFFLINE) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup ## slow tests, minutes each
	$(OFFLINE) .venv/bin/python -m pytest -q -m slow $(ARGS)

test-faults: setup ## kills, faults, hostile input: the table of docs/reliability.md
	$(OFFLINE) .venv/bin/python -m pytest -q -s -m faults --durations=0 $(ARGS)

check: setup ## lint, format check and types (ruff, mypy)
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy vizer_rl rewards

bench: setup ## step time and memory against stock TRL: table, benchmarks/results/ and plot
	$(OFFLINE) .venv/bin/python -m benchmarks.bench $(CASES)

paper: setup ## ViZer's table, quoted beside measured: IMAGES= COCO= KARPATHY= CC3M=, a GPU, a hub
	.venv/bin/python -m experiments.paper $(call path,--images,$(IMAGES))$(call path,--coco,$(COCO))$(\
	)$(call path,--karpathy,$(KARPATHY))$(call path,--cc3m,$(CC3M))$(\
	)$(if $(ARGS),--set $(ARGS) )$(FLAGS)

scenes-assets: setup ## rebuild the checkpoints that ship with the package
	.venv/bin/python -m experiments.embedded.build $(ARGS)

setup: ## install .venv from requirements.lock; every target above does so itself
	@PYTHON=$(call quote,$(PYTHON)) sh scripts/setup
