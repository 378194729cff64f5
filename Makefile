# CIFAR-10 classifiers under 5,000,000 parameters. `make help` lists the targets and variables.

SIZE    ?= full
DATA    ?= $(if $(filter demo,$(SIZE)),synthetic,data)
DEVICE  ?= $(if $(filter demo,$(SIZE)),cpu,$(if $(GPUS),cuda))
VENV    ?= .venv
PYTHON  ?= $(if $(VENV),$(VENV)/bin/python,python3)
SHELL   := /bin/bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
# The variables that were typed are recorded in the weights, without those that hold paths of this machine.
is_typed = $(findstring command,$(origin $(1)))
is_set   = $(filter command environment,$(firstword $(origin $(1))))
as_typed = $(if $(call is_set,$(1)),$(1)=$(if $(word 2,$($(1))),"$($(1))",$($(1))))
decisive := SIZE FOLD EPOCHS LIMIT SEED TEACHER_SEED HOW STAGE DEVICE GPUS ARGS
export MADE_BY ?= $(strip $(MAKECMDGOALS) $(foreach v,$(decisive),$(call as_typed,$v)))

##: SIZE=quick          demo, quick or full [full]: which networks    make SIZE=quick teachers labels distill control report
##: DATA=data           folder of the images, or synthetic            make baseline DATA=synthetic
##: FOLD=3              the fold that is held out [0], or noval       make baseline FOLD=noval
##: EPOCHS=30 LIMIT=5000    fewer passes, or images: a trial, in a folder of its own    make baseline EPOCHS=3 LIMIT=5000
##: SEED=1              weights, order, augmentation: another file    make distill SEED=1
##: TEACHER_SEED=1      of the teachers that a student learns from    make labels distill TEACHER_SEED=1
##: HOW=view            csv, or view: teachers answer on its own batch [csv]    make distill HOW=view
##: DEVICE=cpu          auto, cuda or cpu                             make baseline DEVICE=cpu
##: GPUS=4              spread the jobs of -j over so many GPUs       make -j4 GPUS=4 teachers
##: IMAGES=FILE         images without labels, to answer; with labels and distill also to learn from
##:                                                                   make submission IMAGES=cifar_test_nolabel.pkl
##: STAGE=basic         basic, optimized or augmented [augmented]     make baseline STAGE=basic
##: WEIGHTS="a.pt b.pt" the weights to evaluate                       make evaluate WEIGHTS=weights/resnet18-fold0.pt
##: SRC=FILE            an archive or npz that you already have       make data SRC=cifar-10-python.tar.gz
##: ARGS="..."          any further flags of the one script           make evaluate ARGS="--tta"
##: VENV= PYTHON=python3    use the Python at hand; BASE=python3.12 makes the .venv with another    make test VENV=

# The variables are checked before anything runs: their names, then their values.
known   := SIZE DATA FOLD EPOCHS LIMIT SEED TEACHER_SEED HOW DEVICE GPUS IMAGES STAGE WEIGHTS SRC ARGS VENV PYTHON BASE
strange := $(filter-out $(known),$(foreach v,$(.VARIABLES),$(if $(call is_typed,$v),$v)))
$(if $(strange),$(error there is no variable $(strange); `make help` lists them))
one_of   = $(if $(filter-out $(2),$($(1)))$(word 2,$($(1))),$(error $(1)=$($(1)): should be one of $(2)))
$(call one_of,SIZE,demo quick full)$(call one_of,STAGE,basic optimized augmented)$(call one_of,HOW,csv view)
$(call one_of,FOLD,0 1 2 3 4 noval)$(call one_of,DEVICE,auto cuda cpu)
digitless = $(if $(2),$(call digitless,$(subst $(firstword $(2)),,$(1)),$(wordlist 2,10,$(2))),$(1))
whole     = $(if $(call digitless,$($(1)),0 1 2 3 4 5 6 7 8 9)$(filter-out 0,$(filter 0%,$($(1))))$(word 2,$($(1))),\
  $(error $(1)=$($(1)): should be a whole number))
$(foreach v,EPOCHS LIMIT SEED TEACHER_SEED GPUS,$(call whole,$v))
$(foreach v,EPOCHS LIMIT GPUS,$(if $(filter 0,$($v)),$(error $v=0: should be 1 or more)))
$(if $(DATA),,$(error DATA= is empty))$(if $(SIZE),,$(error SIZE= is empty))
$(if $(VENV),,$(if $(filter setup,$(MAKECMDGOALS)),$(error VENV= is empty)))
$(if $(call is_typed,SIZE),$(foreach goal,$(filter-out $(SIZE),$(filter demo quick,$(MAKECMDGOALS))),\
  $(error $(goal) has a SIZE of its own)))
scripts := quick one baseline labels distill control evaluate submission report benchmark test test-faults
$(if $(and $(call is_typed,ARGS),$(filter-out $(scripts),$(MAKECMDGOALS))$(word 2,$(MAKECMDGOALS))),\
  $(error ARGS are for one script, not for $(MAKECMDGOALS)))
$(if $(and $(call is_typed,FOLD)$(call is_typed,STAGE),$(MAKECMDGOALS)),\
  $(if $(filter baseline pictures %.pt,$(MAKECMDGOALS)),,$(error FOLD and STAGE are of the baseline alone)))

# ---------------------------------------------------------------- three sizes of one pipeline
# Six teachers are of the network `name`, trained by `script`; the one of another kind is `wide`, trained by `other`.
script.full  := train/seresnet.py
name.full    := seresnet164
other.full   := train/shakeshake.py --width 64 --se
wide.full    := shakeshake26-64-se
student.full := --model seresnet164
script.quick  := train/quick.py
name.quick    := fastnet-2x64
other.quick   := train/quick.py --columns 1 --width 128 --middle 256 --top 352 --residual --epochs 28 -b 1024 --lr 1.5 \
                  --augment shift:4,cutout:12
wide.quick    := fastnet-128-256-352-res
student.quick := --model fastnet --temperature 1 --alpha 1

# A teacher trains longer than the student: at as many epochs the control, on all images, outgrows the teachers.
script.demo   := train/seresnet.py --depth 20 --width 8 --wd 5e-4 --epochs 8
name.demo     := seresnet20-8
other.demo    := train/shakeshake.py --width 8 --lr 0.03 --epochs 12
wide.demo     := shakeshake26-8
student.demo  := --model seresnet20 --width 8 --wd 5e-4 --lr 0.05 --epochs 5
baseline.demo := --width 4 --epochs 6
flags.demo    := -b 32 --augment flip --mix none --precision float32
limit.demo    := 1000

# ---------------------------------------------------------------- how a file is called
# weights/seresnet164-fold3-seed1.pt is the place (of the size, and in it a folder for trials), the network, the fold
# held out or noval, and the seed unless it is 0. A student's name tells what it learned from, as in
# student-view-images-teachers2-seed1.pt, that of labels the seed of the teachers: distillation_labels-seed2.csv.
# TEACHER_SEED is that of a student's teachers, which students of several seeds so share. When teachers or labels are
# typed as goals, SEED is theirs unless TEACHER_SEED is set. So they are functions, as in $(call labels,-seed2).
trial := $(if $(LIMIT)$(EPOCHS),/trial$(LIMIT:%=-%-images)$(EPOCHS:%=-%-epochs))
place := weights$(filter-out /full,/$(SIZE))$(trial)
fold  := $(if $(filter noval,$(FOLD)),noval,fold$(or $(FOLD),0))
view  := $(if $(filter view,$(HOW)),-view)
extra := $(if $(and $(IMAGES),$(filter labels distill,$(MAKECMDGOALS))),-images)
seed  := $(addprefix -seed,$(filter-out 0,$(SEED)))
typed_seed   := $(if $(filter teachers labels,$(MAKECMDGOALS)),$(SEED))
teacher_seed := $(addprefix -seed,$(filter-out 0,$(or $(TEACHER_SEED),$(typed_seed))))
goal_seed    := $(if $(TEACHER_SEED),$(teacher_seed),$(seed))

folds    := fold0 fold1 fold2 fold3 fold4 noval
six       = $(folds:%=$(place)/$(name.$(SIZE))-%$(1).pt)
wide      = $(place)/$(wide.$(SIZE))-noval$(1).pt
teachers  = $(call six,$(1)) $(call wide,$(1))
labels    = $(filter-out weights/,$(place)/)distillation_labels$(extra)$(1).csv
one      := $(place)/$(name.$(SIZE))-noval$(seed).pt
student  := $(place)/student$(view)$(extra)$(teacher_seed:-seed%=-teachers%)$(seed).pt
control  := $(place)/student-control$(seed).pt
baseline := $(place)/resnet18$(addprefix -,$(filter-out augmented,$(STAGE)))-$(fold)$(seed).pt
# The images are there in either form, or the archive is fetched. A space in the name of a target has to be escaped.
data     := $(subst $() ,\ ,$(DATA))
images   := $(data)/$(if $(wildcard $(data)/cifar10.npz),cifar10.npz,cifar-10-batches-py/batches.meta)
python   := $(if $(VENV),$(VENV)/installed)
ready    := $(python) $(if $(filter synthetic,$(DATA)),,$(images))

# ---------------------------------------------------------------- what people type
.PHONY: help setup data demo quick baseline teachers labels distill control evaluate submission report benchmark test \
  test-faults clean ask one pictures
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+[ :].*## /{sub(/ .*/, "", $$1); printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo; echo "Variables, with an example each:"; echo
	@awk -F '##: ' '/^##: /{print "  " $$2}' Makefile
setup: $(VENV)/installed ## install the requirements into .venv (about 5 GB, two minutes)
data $(data)/cifar-10-batches-py/batches.meta: | $(python) ## fetch CIFAR-10 (or take SRC=FILE) into DATA and verify it
	$(PYTHON) train/data.py --data "$(DATA)" $(if $(SRC),--src "$(SRC)")
miniature := SIZE=demo TEACHER_SEED=$(or $(TEACHER_SEED),$(SEED)) STAGE=basic FOLD=noval pictures
demo: ## the whole pipeline in miniature, on generated images, in two to five minutes on two cores
	@echo "Baseline, seven teachers, labels, control and student on 1,000 generated images, a job a core:"
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j$$(getconf _NPROCESSORS_ONLN) $(miniature)
	@echo; echo "Now look at weights/demo$(trial)/report/report.html, and at the logs, curves and answers beside it."
quick: ## train the one network of SIZE=quick on all images and score it on the test set
	@$(MAKE) --no-print-directory SIZE=quick one
one: $(one)
baseline: $(baseline) ## train the baseline at a STAGE and score it on the test set
	$(PYTHON) train/evaluate.py $< $(common)
teachers: $(call teachers,$(goal_seed)) ## train the seven teachers; -j4 GPUS=4 spreads them over GPUs
labels: $(call labels,$(goal_seed)) ## average the teachers' logits into distillation_labels.csv
distill: $(student) ## train the student from the teachers and score it on the test set
control: $(control) ## train the student's twin from the labels alone and score it
one distill control:
	$(PYTHON) train/evaluate.py $< $(common) --budget
evaluate: | $(python) ## score WEIGHTS on the test set, several as an ensemble (default: the released network)
	$(PYTHON) train/evaluate.py $(WEIGHTS) $(common) $(LIMIT:%=--limit %) $(ARGS)
submission: | $(python) ## answer the unlabelled IMAGES with WEIGHTS (default: the student) into submission.csv
	@$(if $(IMAGES)$(findstring --images,$(ARGS)),,echo "submission: set IMAGES, as in make submission IMAGES=cifar_test_nolabel.pkl" >&2; exit 2)
	$(PYTHON) distill/submission.py $(or $(WEIGHTS),$(student)) $(if $(IMAGES),--images "$(IMAGES)") $(device) $(ARGS)
evaluate report submission: | $(filter quick one baseline teachers labels distill control,$(MAKECMDGOALS)) # with -j too
report: | $(python) ## tables and pictures of all finished weights of the SIZE, into its folder
	$(PYTHON) train/report.py $(or $(WEIGHTS),$(place)) --out $(place)/report $(common) $(ARGS)
pictures: $(baseline) $(call teachers,$(teacher_seed)) $(student) $(control)
	@$(PYTHON) distill/submission.py $(student) --images synthetic --out $(place)/submission$(seed).csv | tail -n 1
	@$(PYTHON) train/report.py $^ $(common) --out $(place)/report --baseline $(baseline) \
	  --teachers $(call teachers,$(teacher_seed)) --control $(control) --student $(student)
benchmark: | $(ready) ## images per second of the step, the loop and the usual script
	$(PYTHON) train/benchmark.py $(common) $(ARGS)
test: | $(python) ## run the test suite (under 10 minutes on two cores)
	$(PYTHON) -m pytest tests $(ARGS)
test-faults: | $(python) ## kill a run a hundred times and more (slow)
	$(PYTHON) -m pytest tests -m faults $(ARGS)
clean: ## remove caches, never weights and never a state to resume from
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache

# ---------------------------------------------------------------- how a file is made
# A flag is passed on only when its variable is set. ARGS are for the script of the typed goal alone: it is run although
# its file is there, and says what differs from that. So are those that learn from IMAGES, which no name tells.
device := $(DEVICE:%=--device %)
common := --data "$(DATA)" $(device)
limit  := $(addprefix --limit ,$(or $(LIMIT),$(limit.$(SIZE))))
added  := $(if $(extra),--images "$(IMAGES)")
args.$(MAKECMDGOALS) = $(ARGS)
ask.$(MAKECMDGOALS)  = $(if $(ARGS),ask)
# What the name of a file says becomes flags: its words fold3, noval and seed1 are --fold 3, --noval and --seed 1.
words = $(filter $(folds) seed%,$(subst -, ,$(basename $(@F))))
split = $(subst seed,--seed ,$(subst fold,--fold ,$(subst noval,--noval,$(words))))
# With GPUS=N a job takes the first of N GPUs that no other job holds; the lock goes with the process that holds it. They
# are the first N of CUDA_VISIBLE_DEVICES where that is set.
comma := ,
free_gpu = $(if $(GPUS),gpu=0; until exec 9> "weights/.gpu$$gpu.lock" && flock -n 9; do \
  gpu=$$(( (gpu + 1) % $(GPUS) )); [ $$gpu = 0 ] && sleep 1; done; \
  IFS=$(comma) read -ra own <<< "$${CUDA_VISIBLE_DEVICES-$$(seq -s$(comma) 0 $$(( $(GPUS) - 1 )))}"; \
  export CUDA_VISIBLE_DEVICES=$${own[gpu]};)
# The demo shows the last line of a run only, or all of one that fails.
hush.demo := @
log        = $(@:.pt=.log)
shown.demo = > $(log) 2>&1 || { cat $(log) >&2; exit 1; }; \
  printf '%-24s %s\n' $(basename $(@F)) "$$(tail -n 1 $(log) | sed 's/^[^:]*: //')"
# $(call train,script and flags,ARGS)
define train
@mkdir -p $(@D)
$(strip $(or $(hush.$(SIZE)),$(free_gpu)) $(PYTHON) $(1) $(flags.$(SIZE)) $(common) $(limit) $(EPOCHS:%=--epochs %) \
  $(2) $(split) --out $@ $(shown.$(SIZE)))
endef

# The stamp is touched last: an installation that was cut off is repeated.
$(VENV)/installed: requirements.txt
	$(or $(BASE),python3) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Weights are built when they are missing, never because something is newer: every prerequisite is order-only, which a
# recipe calls $|. $(call both,six) are those of both seeds; sort drops what is there twice.
both = $(sort $(call $(1),$(goal_seed)) $(call $(1),$(teacher_seed)))
$(sort $(one) $(call both,six)): $(ask.one) | $(ready)
	$(call train,$(script.$(SIZE)),$(args.one))
$(call both,wide): | $(ready)
	$(call train,$(other.$(SIZE)))
$(baseline): $(ask.baseline) | $(ready)
	$(call train,train/baseline.py $(STAGE:%=--stage %) $(baseline.$(SIZE)),$(args.baseline))

$(call labels,$(goal_seed)): | $(call teachers,$(goal_seed))
$(call labels,$(teacher_seed)): | $(call teachers,$(teacher_seed))
$(call both,labels): $(or $(ask.labels),$(if $(filter labels,$(MAKECMDGOALS)),$(extra:-images=ask)))
	$(hush.$(SIZE))$(PYTHON) distill/labels.py $| $(common) $(limit) $(added) $(args.labels) --out $@
# A missing teacher is trained only where its answers, or the teacher itself, are asked for.
.SECONDARY: $(call both,teachers) $(call both,labels)

$(student): $(or $(ask.distill),$(extra:-images=ask)) | \
  $(if $(view),$(call teachers,$(teacher_seed)),$(call labels,$(teacher_seed)))
	$(call train,distill/student.py --noval --$(if $(view),teachers,labels) $| $(student.$(SIZE)) $(added),$(args.distill))
$(control): $(ask.control) | $(ready)
	$(call train,distill/student.py --noval $(student.$(SIZE)) --alpha 0,$(args.control))
