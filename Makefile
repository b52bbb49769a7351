# Everything starts here: `make` lists the targets. Written for GNU make 3.81, which macOS ships.
.PHONY: help train-smolvlm train-qwen2vl scenes-assets test test-slow check bench setup
.DEFAULT_GOAL := help

#: IMAGES=   a folder of images                   (data.images; default: the scenes that ship)
#: MODEL=    a checkpoint: hub name or folder     (policy.model)
#: PROFILE=  auto, scenes or full                 (profile; auto is full where there is CUDA)
#: NAME=     the run is runs/NAME                 (name; unset: the run file's, made anew each time)
#: SEED=     a whole number                       (seed)
#: ARGS=     any other settings: ARGS="train.max_steps=20 policy.lora.r=8"
#: FLAGS=    flags of vizer-rl: FLAGS=--resume
#: CASES=    of make bench: embedded, shaped, scaling, real, or one case (all that the machine can)
#: PYTHON=   which Python makes .venv             (3.11, 3.12 or 3.13; used the first time)

# WSL exports NAME, the machine's: only `make … NAME=x` counts.
ifeq ($(origin NAME),environment)
NAME :=
endif

quote = '$(subst ','\'',$(1))'
override_ = $(if $(strip $(2)),$(call quote,$(1)=$(2)) )
OVERRIDES = $(call override_,data.images,$(IMAGES))$(call override_,policy.model,$(MODEL))$(\
)$(call override_,profile,$(PROFILE))$(call override_,name,$(NAME))$(\
)$(call override_,seed,$(SEED))$(ARGS)
# A run that has a name is never overwritten unasked. Without one the run file's own name applies:
# a demo that can be made again, so that `make train-smolvlm` works twice in a row.
RUN_FLAGS = $(if $(NAME)$(filter name=%,$(ARGS))$(FLAGS),$(FLAGS),--overwrite)
OFFLINE = HF_HUB_OFFLINE=1 WANDB_MODE=offline

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile
	@echo "Variables:"
	@sed -n 's/^#: /  /p' Makefile

train-smolvlm: setup ## the main job: SmolVLM learns to caption your images without a label
	.venv/bin/vizer-rl train experiments/smolvlm.yaml $(OVERRIDES) $(RUN_FLAGS)

train-qwen2vl: setup ## the same with Qwen2-VL
	.venv/bin/vizer-rl train experiments/qwen2vl.yaml $(OVERRIDES) $(RUN_FLAGS)

test: setup ## the tests: offline, no GPU
	$(OFFLINE) .venv/bin/python -m pytest -q $(ARGS)

test-slow: setup ## the tests that take minutes
	$(OFFLINE) .venv/bin/python -m pytest -q -m slow $(ARGS)

check: setup ## ruff, format, mypy
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy vizer_rl rewards

bench: setup ## our trainer against stock TRL: a table, benchmarks/results/ and a plot
	$(OFFLINE) .venv/bin/python -m benchmarks.bench $(CASES)

scenes-assets: setup ## build the small checkpoints that ship with the package anew
	.venv/bin/python -m experiments.embedded.build $(ARGS)

setup: ## make .venv from requirements.lock; every target above does this itself
	@PYTHON=$(call quote,$(PYTHON)) sh scripts/setup
