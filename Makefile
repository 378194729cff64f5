# CIFAR-10 classifiers under 5,000,000 parameters. `make help` lists the targets and variables.
#
# A role is a file name, a variant is a folder: weights/{demo,quick,full}/[trial-200-images-2-epochs/][seed1/] holds
#   teacher-fold0.pt to teacher-fold4.pt, teacher-all.pt, teacher-wide.pt, distillation_labels.csv, student.pt,
#   control.pt, baseline-STAGE.pt, with FOLD=3 baseline-STAGE-fold3.pt, with IMAGES=a.pkl images-a/student.pt; report/
# and weights/{quick,full}/[trial-.../]ladder/[seed1/] the rows of the ladder, ROW.pt.
# A file is made if it is missing, never because another is newer, so prerequisites come after a |. The exception is
# x.json, the score of x.pt on the test set, which is made again when x.pt is newer.

SIZE     ?= $(or $(filter demo quick,$(MAKECMDGOALS)),full)##: demo, quick (CPUs) or full (a GPU) [full]: which networks
DATA     ?= $(if $(filter demo,$(SIZE)),synthetic,data)##: folder of the images [data], or synthetic
EPOCHS   ?=##: another number of passes over the images: a trial, in its own folder    make quick EPOCHS=3
LIMIT    ?=##: use only this many training images: also a trial    make baseline EPOCHS=3 LIMIT=5000
SEED     ?=##: random seed [0]: another one has its own folder
SEEDS    ?=##: train several seeds and show their mean    make quick SEEDS="0 1 2"
STAGE    ?= $(if $(filter demo,$(SIZE)),basic,augmented)##: recipe of make baseline: basic, optimized, augmented or tuned [augmented]
FOLD     ?= $(if $(filter demo,$(SIZE)),noval,0)##: fold that make baseline holds out: 0 to 4, or noval [0]
TEACHERS ?= $(if $(filter demo teachers labels,$(MAKECMDGOALS)),$(run),$(base))##: folder of the teachers [of seed 0]
LABELS   ?= $(csv)##: distill from this CSV; no teachers are trained    make distill LABELS=weights/distillation_labels.csv.gz
IMAGES   ?=##: unlabelled images: submission classifies them, labels and distill add them to the training images
WEIGHTS  ?=##: weights to use [the released network, or the student]    make evaluate WEIGHTS="a.pt b.pt"
DEVICE   ?= $(if $(filter demo,$(SIZE)),cpu,$(if $(GPUS),cuda,auto))##: auto, cuda or cpu [auto]
GPUS     ?=##: number of GPUs that the jobs of -j share    make -k -j4 GPUS=4 teachers
ARGS     ?=##: more flags for the one script of the target    make evaluate ARGS="--tta"
SRC      ?=##: an archive or npz that you have already    make data SRC=cifar-10-python.tar.gz
BASE     ?= python3##: the Python that makes the .venv [python3]    make setup BASE=python3.12
VENV     ?= .venv##: the virtual environment [.venv]; VENV= (empty) uses the python3 in PATH    make test VENV=
PYTHON   ?= $(if $(VENV),$(VENV)/bin/python,python3)##: the Python that runs the scripts [the .venv's]

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-builtin-rules
scored  := quick baseline distill control
tools   := evaluate submission report benchmark lint test test-faults
targets := help setup data demo $(scored) teachers labels ladder $(tools) clean
.PHONY: $(targets) FORCE
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+[ :].*## /{sub(/ .*/, "", $$1); printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo; echo "Variables, with their [defaults]:"; echo
	@awk -F '##: ' '/^[A-Z]+ .*##: /{sub(/ .*/, "", $$1); printf "  %-9s %s\n", $$1, $$2}' Makefile

# ---------------------------------------------------------------- checks: a variable exists, and its target uses it
known := SIZE DATA EPOCHS LIMIT SEED SEEDS STAGE FOLD TEACHERS LABELS IMAGES WEIGHTS DEVICE GPUS ARGS SRC BASE VENV PYTHON
typed := $(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$(if $($v),$v)))
sizes := $(or $(filter demo quick,$(MAKECMDGOALS)),$(if $(filter ladder,$(MAKECMDGOALS)),quick full,demo quick full))
named := $(filter $(targets),$(MAKECMDGOALS))
only   = $(if $(named),$(if $(filter $(2),$(named)),,$(foreach v,$(filter $(1),$(typed)),\
  $(error make $(named) does not use $v))))
$(if $(filter 0,$(MAKELEVEL)),$(foreach v,$(known),$(if $(and $(filter environment,$(origin $v)),$($v)),\
  $(warning $v=$($v) comes from the environment))))
$(foreach v,$(filter-out $(known),$(typed)),$(error there is no variable $v; `make help` lists them))
$(foreach v,SIZE DATA STAGE FOLD DEVICE BASE PYTHON $(if $(filter setup,$(named)),VENV),$(if $($v),,$(error $v= is empty)))
$(foreach v,SEED EPOCHS LIMIT STAGE FOLD GPUS,$(if $(word 2,$($v)),$(error $v=$($v): should be one word)))
$(if $(GPUS),$(if $(shell [[ '$(GPUS)' =~ ^[1-9][0-9]*$$ ]] && echo a number),,$(error GPUS=$(GPUS): should be a number)))
$(if $(and $(GPUS),$(CUDA_VISIBLE_DEVICES)),$(if $(shell IFS=, read -ra own <<< '$(CUDA_VISIBLE_DEVICES)'; \
  [ $${#own[@]} -ge $(GPUS) ] && echo enough),,$(error CUDA_VISIBLE_DEVICES=$(CUDA_VISIBLE_DEVICES): fewer than GPUS=$(GPUS))))
$(call only,SIZE SEED EPOCHS,$(scored) demo teachers labels ladder submission report)
$(call only,LIMIT,$(scored) demo teachers labels ladder submission)
$(call only,SEEDS,$(scored))
$(call only,STAGE FOLD,baseline)
$(call only,TEACHERS,labels distill ladder)
$(call only,LABELS,distill ladder)
$(call only,IMAGES,labels distill submission)
$(call only,WEIGHTS,evaluate submission)
$(if $(or $(and $(ARGS),$(word 2,$(MAKECMDGOALS))),$(and $(filter ARGS,$(typed)),$(filter-out $(scored) labels \
  $(tools),$(MAKECMDGOALS)))),$(error ARGS are for one script, not for $(MAKECMDGOALS)))
$(if $(and $(filter --out --out=%,$(ARGS)),$(filter $(scored) labels,$(named))),\
  $(error make $(named) chooses --out itself: type the script's own command for another))
$(if $(and $(filter ladder,$(named)),$(word 2,$(MAKECMDGOALS))),$(error make ladder goes alone))
$(if $(and $(SEED),$(SEEDS)),$(error SEED or SEEDS, not both))
$(if $(filter-out synthetic,$(IMAGES)),$(if $(shell [ -e "$(IMAGES:~/%=$$HOME/%)" ] && echo there),,\
  $(error IMAGES=$(IMAGES) does not exist)))
$(if $(word 2,$(filter LABELS TEACHERS,$(typed))),$(error LABELS or TEACHERS, not both))
$(if $(filter-out $(sizes),$(SIZE))$(word 2,$(SIZE)),$(error SIZE=$(SIZE): should be one of $(sizes)))

# ---------------------------------------------------------------- three sizes of one pipeline
# `script` trains six teachers, of the student's network; `wide` trains the seventh, of another one.
script.full   := train/seresnet.py
wide.full     := train/shakeshake.py --width 64 --se
student.full  := --model seresnet164
script.quick  := train/quick.py
wide.quick    := train/quick.py --columns 1 --widths 128,256,352 --residual --epochs 28 -b 1024 --lr 1.5 \
  --augment shift:4,cutout:12
student.quick := --model fastnet --temperature 1 --alpha 1
# A teacher trains longer than the student: at as many epochs the control, on all images, outgrows the teachers.
script.demo   := train/seresnet.py --depth 20 --width 8 --weight-decay 5e-4 --epochs 8
wide.demo     := train/shakeshake.py --width 8 --lr 0.03 --epochs 12
student.demo  := --model seresnet20 --width 8 --weight-decay 5e-4 --lr 0.05 --epochs 5
baseline.demo := --width 4 --epochs 6
flags.demo    := -b 32 --augment flip --mix none --precision float32
limit.demo    := 1000

# The documented ladder, each row by its documented recipe, then three networks that are not documented. With
# SIZE=quick, a short recipe overrides theirs; only `augmented` has Cutout, `basic` keeps its constant learning rate,
# and the distilled row learns from the released labels unless others are named.
ladder   := resnet18-basic resnet18-optimized resnet18-augmented shakeshake26-32 shakeshake26-40 shakeshake26-40-se \
  seresnet164 seresnet164-distilled resnet20x4 pyramidnet flatse
row_labels = $(if $(filter-out quick,$(SIZE))$(filter LABELS TEACHERS,$(typed)),$(LABELS),$(released))
released := weights/distillation_labels.csv.gz
unmixed  := --augment crop,flip,autoaugment,cutout --mix none
short    := --epochs 16 --warmup-epochs 2 -b 128 --lr 0.2 --low-res 0.3125 --smoothing 0.1 --mix none \
  --augment crop,flip
row.resnet18-basic        = train/baseline.py --stage basic
row.resnet18-optimized    = train/baseline.py --stage optimized
row.resnet18-augmented    = train/baseline.py
row.shakeshake26-32       = train/shakeshake.py $(unmixed)
row.shakeshake26-40       = train/shakeshake.py --width 40 $(unmixed)
row.shakeshake26-40-se    = train/shakeshake.py --width 40 --se
row.seresnet164           = train/seresnet.py
row.seresnet164-distilled = distill/student.py --labels $(row_labels)
row.resnet20x4            = train/baseline.py --stage tuned
row.pyramidnet            = train/pyramidnet.py
row.flatse                = train/flatse.py
short.resnet18-basic        := --epochs 16
short.resnet18-optimized    := $(short)
short.resnet18-augmented    := $(short) --augment crop,flip,cutout:12
short.resnet20x4            := $(short) --weight-decay 5e-4
short.seresnet164           := $(short) --weight-decay 3e-4
short.seresnet164-distilled := $(short.seresnet164)
short.pyramidnet            := $(short) --epochs 8
short.flatse                := $(short) --epochs 8
# `make SIZE=quick baseline` trains by the short recipe of its row too; a stage of your own keeps its recipe.
short.resnet18-tuned := $(short.resnet20x4)
baseline.quick        = $(short.resnet18-$(STAGE))

# ---------------------------------------------------------------- files and flags
base    := weights/$(SIZE)$(if $(LIMIT)$(EPOCHS),/trial$(LIMIT:%=-%-images)$(EPOCHS:%=-%-epochs))
seed_folder = $(addprefix /seed,$(filter-out 0,$(1)))
run     := $(base)$(call seed_folder,$(SEED))
folds   := fold0 fold1 fold2 fold3 fold4
seven   := $(foreach k,$(folds) all wide,$(TEACHERS)/teacher-$k.pt)
images  := $(if $(IMAGES),images-$(subst $() ,-,$(basename $(notdir $(IMAGES:%/=%))))/)
csv     := $(TEACHERS)/$(images)distillation_labels.csv
absent  := run make SIZE=$(SIZE)$(LIMIT:%= LIMIT=%)$(EPOCHS:%= EPOCHS=%) teachers first, with the SEED of its folder
student := $(run)/$(images)student.pt
rows    := $(base)/ladder$(call seed_folder,$(SEED))
file.quick    := teacher-all
file.baseline := baseline-$(STAGE)$(if $(filter noval,$(FOLD)),-noval,$(addprefix -fold,$(filter-out 0,$(FOLD))))
file.distill  := $(images)student
file.control  := control
stamp   := $(if $(VENV),$(if $(filter $(VENV)/bin/python,$(PYTHON)),$(VENV)/installed))
common  := --data "$(DATA)" --device $(DEVICE)
limit   := $(addprefix --limit ,$(or $(LIMIT),$(limit.$(SIZE))))
extra   := $(if $(IMAGES),--images "$(IMAGES)")
# ARGS go only to the script of the typed target. That script runs even if its file exists: it says that it is finished,
# or what differs. A student is run again only if its labels exist or are made too, or if ARGS, LABELS, TEACHERS or
# IMAGES are given, because its name does not tell them; the CSV and the ladder's student only if one of those is given.
args     = $(if $(filter $(1),$(MAKECMDGOALS)),$(ARGS))
forced   = $(if $(filter $(1),$(MAKECMDGOALS)),FORCE)
changed  = $(if $(ARGS)$(IMAGES)$(filter LABELS TEACHERS,$(typed)),$(call forced,$(1)))
labelled = $(filter teachers labels,$(MAKECMDGOALS))$(wildcard $(LABELS))
# With GPUS=N, a job takes the first of N GPUs that no other job of this user has locked, in TMPDIR or /tmp; the lock
# ends with the process. They are the first N of CUDA_VISIBLE_DEVICES if that is set.
ifneq ($(GPUS),)
free_gpu = IFS=, read -ra own <<< "$${CUDA_VISIBLE_DEVICES-$$(seq -s, 0 $$(( $(GPUS) - 1 )))}"; gpu=0; \
  until exec 9> "$${TMPDIR:-/tmp}/cifar10-$$UID-gpu$${own[gpu]}.lock" || exit; flock -n 9; do \
  gpu=$$(( (gpu + 1) % $(GPUS) )); [ $$gpu = 0 ] && sleep 1; done; export CUDA_VISIBLE_DEVICES=$${own[gpu]};
endif
# The demo shows the last line of a run only, or all of one that fails.
hush.demo  := @
shown.demo  = >> $(@:.pt=.log) 2>&1 || { cat $(@:.pt=.log) >&2; exit 1; }; \
  printf '%-20s %s\n' $(basename $(@F)) "$$(tail -n 1 $(@:.pt=.log) | sed 's/^[^:]*: //')"
# $(call train,script and its flags,the target whose ARGS it takes)
train = $(hush.$(SIZE))mkdir -p $(@D); $(free_gpu) $(PYTHON) $(strip $(1) $(flags.$(SIZE)) $(common) $(limit) \
  $(EPOCHS:%=--epochs %) $(SEED:%=--seed %) $(call args,$(2))) --out $@ $(shown.$(SIZE))

# ---------------------------------------------------------------- what people type, and how its files are made
setup: $(VENV)/installed ## install the requirements into .venv (about 5 GB, two minutes)
	@echo "$(VENV) has $$($(VENV)/bin/python --version) and all that requirements.txt names"
# The stamp is touched last. Without it, or without a python in the .venv, the .venv is made anew; a folder that make
# setup did not make, which has no such prompt, is left alone.
anew := $(shell test -e $(VENV)/installed -a -e $(VENV)/bin/python || echo FORCE)
$(VENV)/installed: requirements.txt $(anew)
	@$(if $(anew),$(BASE) -c 'import sys; sys.exit(not 0x30b0000 <= sys.hexversion < 0x30f0000 and \
	sys.version.split()[0] + ": Python 3.11 to 3.14 is needed; with another one, make setup BASE=python3.12")')
	@$(if $(anew),[ -z "$$(ls -A "$(VENV)" 2> /dev/null)" ] || [ -e "$(VENV)/installed" ] || \
	  grep -qs "^prompt.*cifar10-under-5m" "$(VENV)/pyvenv.cfg" || \
	  (echo "$(VENV) was not made by make setup: delete it, or name another folder by VENV=" >&2; exit 2))
	$(if $(anew),$(BASE) -m venv --clear --prompt cifar10-under-5m $(VENV))
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
data: | $(stamp) ## fetch CIFAR-10, or take SRC=FILE, into DATA and verify it
	$(PYTHON) train/download.py --data "$(DATA)" $(if $(SRC),--src "$(SRC)")

demo: $(run)/$(file.baseline).pt $(seven) $(student) $(run)/control.pt ## the whole pipeline in miniature, two to six minutes
	@$(PYTHON) distill/submission.py $(student) --images synthetic --out $(run)/submission.csv | tail -n 1
	@$(report)
	@echo; echo "Now look at $(run)/report/report.html; $(run) has the logs, the scores and submission.csv."
ifneq ($(filter demo,$(MAKECMDGOALS)),)
$(info Baseline, seven teachers, labels, control and student on 1,000 generated images, a job a core:)
MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS := 1
endif

# These end with a score; with SEEDS, with a table of the mean (not for LIMIT, whose scores are not kept).
ifeq ($(SEEDS),)
quick: $(run)/$(file.quick).json ## train FastNet on all images (15 to 99 minutes on two cores) and score it
baseline: $(run)/$(file.baseline).json ## train the baseline by the recipe STAGE and score it
distill: $(run)/$(file.distill).json ## train the student (first any missing teachers and labels) and score it
control: $(run)/$(file.control).json ## train the student's network without teachers and score it
else
$(scored): | $(filter teachers labels,$(MAKECMDGOALS))
	@for seed in $(SEEDS); do $(MAKE) --no-print-directory $@ SIZE=$(SIZE) SEEDS= SEED=$$seed || exit; done
	$(if $(LIMIT),,$(PYTHON) train/report.py $(foreach seed,$(SEEDS),$(base)$(call seed_folder,$(seed))/$(file.$@).json) \
	  --out $(base)/report-$@)
endif
# A CSV named by LABELS comes first, and missing teachers of another folder are an error, before any training.
missing := $(filter-out $(run)/% $(wildcard $(seven)),$(if $(wildcard $(csv)),,$(seven)))
$(if $(and $(filter ladder,$(named)),$(filter $(csv),$(row_labels)),$(missing)),\
  $(error $(firstword $(missing)) does not exist: $(absent)))
# A student that is there learned from other labels than those of teachers still to be trained, and would refuse them.
$(if $(and $(filter distill,$(named)),$(filter teachers labels,$(named)),$(wildcard $(student) $(student:.pt=.last.pt)),\
  $(if $(filter LABELS,$(typed)),,$(filter-out $(wildcard $(seven)),$(seven)))),\
  $(error $(student) learned from other labels: move it away, or choose another SEED))
ladder: $(filter-out $(run)/%,$(row_labels)) $(ladder:%=$(rows)/%.json) ## train and score the documented ladder and three more networks, then show the table
	$(if $(LIMIT),,$(PYTHON) train/report.py $(base)/ladder)
teachers: $(seven) ## train the seven teachers; -k -j4 GPUS=4 spreads them over GPUs
labels: $(csv) ## average the teachers' logits into distillation_labels.csv

# Teachers are trained only in this run's folder, and only if the labels need them.
.SECONDARY: $(seven) $(csv)
# Scripts write a file completely or not at all, so make deletes none, whatever signal ends a recipe.
.PRECIOUS: $(csv) $(student) $(run)/control.pt $(run)/$(file.baseline).pt \
  $(ladder:%=$(rows)/%.pt) $(addprefix $(run)/,$(notdir $(seven)))
ifneq ($(TEACHERS),$(run))
$(seven): ; @echo "$@ does not exist: $(absent)" >&2; exit 2
endif
$(folds:%=$(run)/teacher-%.pt): $(run)/teacher-fold%.pt: | $(stamp) ; $(call train,$(script.$(SIZE)) --fold $*)
$(run)/teacher-wide.pt:  | $(stamp) ; $(call train,$(wide.$(SIZE)) --noval)
$(run)/teacher-all.pt: $(call forced,quick) | $(stamp) ; $(call train,$(script.$(SIZE)) --noval,quick)
$(run)/control.pt: $(call forced,control) | $(stamp)
	$(call train,distill/student.py --noval $(student.$(SIZE)) --alpha 0,control)
$(run)/$(file.baseline).pt: $(call forced,baseline) | $(stamp)
	$(call train,train/baseline.py --stage $(STAGE) $(if $(filter noval,$(FOLD)),--noval,--fold $(FOLD)) \
	  $(baseline.$(SIZE)),baseline)
$(rows)/seresnet164-distilled.pt: $(call changed,ladder) | $(row_labels)
$(ladder:%=$(rows)/%.pt): $(rows)/%.pt: | $(stamp)
	$(call train,$(row.$*) --noval $(if $(filter quick,$(SIZE)),$(or $(short.$*),$(short))))
$(csv): $(call changed,labels) | $(seven)
	$(hush.$(SIZE))mkdir -p $(@D); \
	$(free_gpu) $(PYTHON) distill/labels.py $(seven) $(strip $(common) $(limit) $(extra) $(call args,labels)) --out $@
$(student): $(if $(labelled),$(call forced,distill),$(call changed,distill)) | $(LABELS) $(stamp)
	$(call train,distill/student.py --noval --labels $(LABELS) $(student.$(SIZE)) $(extra),distill)

# A trial with LIMIT is scored on that many images at most; evaluate then writes no file.
%.json: %.pt
	$(free_gpu) $(PYTHON) train/evaluate.py $< $(common) $(LIMIT:%=--limit %)
evaluate: | $(stamp) ## score WEIGHTS on the test set, several as an ensemble (default: the released network)
	$(PYTHON) train/evaluate.py $(WEIGHTS) $(common) $(ARGS)
# Without WEIGHTS: the student that learned from these IMAGES too, or the one without, or the released network.
submission: | $(stamp) ## classify the IMAGES with WEIGHTS (default: the student; the released network if SIZE=full has none)
	@$(if $(IMAGES)$(findstring --images,$(ARGS)),,echo "IMAGES is not set, for example: make submission IMAGES=test.pkl" >&2; exit 2)
	$(PYTHON) distill/submission.py $(or $(WEIGHTS),$(firstword $(wildcard $(student) $(run)/student.pt)),\
	  $(if $(filter-out weights/full,$(run)),$(run)/student.pt)) $(extra) --device $(DEVICE) $(ARGS)
# First score all weights without a score, or with one older than they are.
report = unscored=(); for file in $(run)/{,seed*/}{,images-*/}*.pt $(run)/ladder/{,seed*/}*.pt; do \
    [[ -e $$file && $$file != *.last.pt && $$file -nt $${file%.pt}.json ]] && unscored+=("$$file"); done; \
  [ -z "$$unscored" ] || $(PYTHON) train/evaluate.py --each "$${unscored[@]}" $(common) \
    $(if $(hush.$(SIZE)),> /dev/null) && \
  $(PYTHON) train/report.py $(run) $(wildcard $(run)/images-* $(run)/seed*/images-* $(run)/ladder) $(call args,report)
report: | $(stamp) ## tables and pictures of all runs in the folder of SIZE and SEED
	@[ -d $(run) ] || (echo "$(run) does not exist: name the SIZE of your runs, as in make report SIZE=quick" >&2; exit 2)
	@$(report)
evaluate submission report: | $(filter demo $(scored) teachers labels,$(MAKECMDGOALS)) # with -j too

benchmark: | $(stamp) ## measure the training speed, in images per second
	$(PYTHON) train/benchmark.py $(common) $(ARGS)
lint: | $(stamp) ## check the style of the code, as .ruff.toml describes it
	$(PYTHON) -m ruff check $(ARGS)
test: | $(stamp) ## run the test suite (four to ten minutes on two cores)
	$(PYTHON) -m pytest tests $(ARGS)
test-faults: | $(stamp) ## kill a run a hundred times and compare the weights (slow)
	$(PYTHON) -m pytest tests -m faults $(ARGS)
clean: ## remove caches, never weights and never a state to resume from
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache
