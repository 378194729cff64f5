# The best CIFAR-10 classifier under 5,000,000 parameters. `make help` lists the targets and variables.

SIZE    ?= full
DATA    ?= $(if $(filter demo,$(SIZE)),synthetic,data)
DEVICE  ?= $(if $(filter demo,$(SIZE)),cpu)
VENV    ?= .venv
PYTHON  ?= $(if $(VENV),$(VENV)/bin/python,python3)
SHELL   := /bin/bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
# What was typed goes into the weights; paths of this machine do not.
export MADE_BY ?= $(strip $(MAKECMDGOALS) $(filter-out DATA=% VENV=% PYTHON=% WEIGHTS=% IMAGES=%,$(MAKEOVERRIDES)))
.DEFAULT_GOAL := help

##: SIZE=quick          demo, quick or full: which networks           make SIZE=quick teachers labels distill control report
##: DATA=data           folder of the images, or synthetic            make baseline DATA=synthetic
##: FOLD=3              the fold that is held out, or noval           make baseline FOLD=noval
##: EPOCHS=30 LIMIT=5000    fewer passes, or images: a trial, in a folder of its own    make baseline EPOCHS=3 LIMIT=5000
##: SEED=1              weights, order, augmentation: another file    make distill SEED=1
##: TEACHER_SEED=1      of the teachers that a student learns from    make labels distill TEACHER_SEED=1
##: HOW=view            teachers answer on the student's own batch    make distill HOW=view
##: DEVICE=cpu          auto, cuda or cpu                             make baseline DEVICE=cpu
##: GPUS=4              so many jobs at once, each on a free GPU      make -j5 GPUS=4 teachers
##: IMAGES=FILE         images without labels                         make submission IMAGES=test_nolabel.pkl
##: STAGE=basic         basic, optimized or augmented                 make baseline STAGE=basic
##: WEIGHTS="a.pt b.pt" the weights to evaluate                       make evaluate WEIGHTS=weights/resnet18-fold0.pt
##: SRC=FILE            an archive or npz that you already have       make data SRC=cifar-10-python.tar.gz
##: ARGS="..."          any further flags of the one script           make baseline ARGS="--mix ricap"
##: VENV= PYTHON=python3    use the Python at hand; BASE=python3.12 makes the .venv with another    make test VENV=

# The variables are checked before anything runs: their names, then their values.
known   := SIZE DATA FOLD EPOCHS LIMIT SEED TEACHER_SEED HOW DEVICE GPUS IMAGES STAGE WEIGHTS SRC ARGS VENV PYTHON BASE
strange := $(filter-out $(known),$(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v)))
$(if $(strange),$(error there is no variable $(strange); `make help` lists them))
one_of   = $(if $(filter-out $(2),$($(1)))$(word 2,$($(1))),$(error $(1)=$($(1)): should be one of $(2)))
$(call one_of,SIZE,demo quick full)$(call one_of,STAGE,basic optimized augmented)$(call one_of,HOW,csv view)
$(call one_of,FOLD,0 1 2 3 4 noval)$(call one_of,DEVICE,auto cuda cpu)
scripts := quick one baseline labels distill control evaluate submission report benchmark test test-faults
$(if $(ARGS),$(if $(filter-out $(scripts),$(MAKECMDGOALS))$(word 2,$(MAKECMDGOALS)),$(error ARGS are for one script, not \
  for $(MAKECMDGOALS))))
$(if $(STAGE)$(FOLD),$(if $(filter-out baseline pictures %.pt,$(MAKECMDGOALS)),$(error FOLD and STAGE are of the baseline alone)))

# ---------------------------------------------------------------- three sizes of one pipeline
place.full   := weights
script.full  := train/seresnet.py
name.full    := seresnet164
other.full   := train/shakeshake.py --width 64 --se
wide.full    := shakeshake26-64-se
student.full := --model seresnet164
place.quick   := weights/quick
script.quick  := train/quick.py
name.quick    := fastnet
other.quick   := train/quick.py --width 128 --middle 256 --epochs 16 --augment shift:3
wide.quick    := fastnet-128-256-256
student.quick := --model fastnet --temperature 1 --alpha 1

# A teacher trains longer than the student: at as many epochs the control, on all images, outgrows the teachers.
place.demo   := weights/demo
script.demo  := train/seresnet.py --depth 20 --width 8 --wd 5e-4 --epochs 8
name.demo    := seresnet20-8
other.demo   := train/shakeshake.py --width 8 --lr 0.03 --epochs 12
wide.demo    := shakeshake26-8
student.demo := --model seresnet20 --width 8 --wd 5e-4 --lr 0.05 --epochs 5
flags.demo   := -b 32 --augment flip --mix none --precision float32
limit.demo   := 1000

# A trial stays away from the files that the documented recipes make.
trial  := $(if $(LIMIT)$(EPOCHS),/trial$(LIMIT:%=-%-images)$(EPOCHS:%=-%-epochs))
place  := $(place.$(SIZE))$(trial)
seed   := $(if $(filter-out 0,$(SEED)),-seed$(SEED))
source := $(if $(filter-out 0,$(TEACHER_SEED)),-seed$(TEACHER_SEED))
taught := $(if $(TEACHER_SEED),$(source),$(seed))
seeds  := $(sort x$(taught) x$(source))
view   := $(if $(filter view,$(HOW)),-view)
extra  := $(if $(IMAGES),$(if $(filter labels distill,$(MAKECMDGOALS)),-images))

parts    := fold0 fold1 fold2 fold3 fold4 noval
alike     = $(foreach part,$(parts),$(place)/$(name.$(SIZE))-$(part)$(1).pt)
wide      = $(place)/$(wide.$(SIZE))-noval$(1).pt
teachers  = $(call alike,$(1)) $(call wide,$(1))
labels    = $(if $(filter-out weights,$(place)),$(place)/)distillation_labels$(extra)$(1).csv
student  := $(place)/student$(view)$(extra)$(source:-seed%=-teachers%)$(seed).pt
control  := $(place)/student-control$(seed).pt
fold     := $(if $(filter noval,$(FOLD)),noval,fold$(or $(FOLD),0))
baseline := $(place)/resnet18$(if $(filter-out augmented,$(STAGE)),-$(STAGE))-$(fold)$(seed).pt

# ---------------------------------------------------------------- how a file is made
# The images are there in either form, or the archive is fetched. A space in the name of a target has to be escaped.
data   := $(subst $() ,\ ,$(DATA))
images := $(data)/$(if $(wildcard $(data)/cifar10.npz),cifar10.npz,cifar-10-batches-py/batches.meta)
python := $(if $(VENV),$(VENV)/installed)
ready  := $(python) $(if $(filter synthetic,$(DATA)),,$(images))

# A flag is passed on only when its variable is set. What the name of a file says, its fold and seed, becomes flags.
common := --data "$(DATA)" $(DEVICE:%=--device %)
limit  := $(addprefix --limit ,$(or $(LIMIT),$(limit.$(SIZE))))
flags  := $(common) $(limit) $(EPOCHS:%=--epochs %)
added  := $(if $(extra),--images "$(IMAGES)")
split   = $(patsubst seed%,--seed %,$(patsubst fold%,--fold %,$(patsubst noval,--noval,\
  $(filter noval seed% $(parts),$(subst -, ,$(basename $(@F)))))))
# With GPUS=N a job takes the first of N GPUs that no other job holds; the lock goes with the process that holds it.
free_gpu = $(if $(GPUS),gpu=0; until exec 9> "weights/.gpu$$gpu.lock" && flock -n 9; do \
  gpu=$$(( (gpu + 1) % $(GPUS) )); [ $$gpu = 0 ] && sleep 1; done; export CUDA_VISIBLE_DEVICES=$$gpu;)
# $(call train,script and flags,goal): the demo shows the last line only. ARGS are for the script of the typed goal alone.
args  = $(if $(filter $(1),$(MAKECMDGOALS)),$(ARGS))
run   = $(PYTHON) $(strip $(1) $(flags.$(SIZE)) $(flags) $(call args,$(2)) $(split)) --out $@
quiet = > $(@:.pt=.log) 2>&1 || { cat $(@:.pt=.log) >&2; exit 1; }; \
  printf '%-24s %s\n' $(basename $(@F)) "$$(tail -n 1 $(@:.pt=.log) | sed 's/^[^:]*: //')"
define train
@mkdir -p $(@D)
$(if $(filter demo,$(SIZE)),@$(run) $(quiet),$(strip $(free_gpu)) $(run))
endef
# Weights are built when they are missing, never because something is newer: every prerequisite is order-only. With
# ARGS the script is asked all the same, and says what differs from the file that is there.
asked = $(if $(call args,$(1)),ask)
every = $(sort $(foreach s,$(seeds),$(call $(1),$(s:x%=%))))
# A missing teacher is trained only where its answers, or the teacher itself, are asked for.
.SECONDARY: $(call every,alike) $(call every,wide) $(call every,labels)

$(call every,alike): $(call asked,one) | $(ready)
	$(call train,$(script.$(SIZE)),one)
$(call every,wide): | $(ready)
	$(call train,$(other.$(SIZE)))

$(baseline): $(call asked,baseline) | $(ready)
	$(call train,train/baseline.py $(STAGE:%=--stage %) $(if $(filter demo,$(SIZE)),--width 4 --epochs 6),baseline)

define labels_of
$(call labels,$(1)): $(call asked,labels) | $(call teachers,$(1))
	$(if $(filter demo,$(SIZE)),@)$(PYTHON) distill/labels.py $(call teachers,$(1)) $(common) $(limit) $(added) $(call args,labels) --out $$@
endef
$(foreach s,$(seeds),$(eval $(call labels_of,$(s:x%=%))))

from := $(if $(view),--teachers $(call teachers,$(source)),--labels $(call labels,$(source)))
$(student): $(call asked,distill) | $(if $(view),$(call teachers,$(source)),$(call labels,$(source)))
	$(call train,distill/student.py --noval $(from) $(student.$(SIZE)) $(added),distill)
$(control): $(call asked,control) | $(ready)
	$(call train,distill/student.py --noval $(student.$(SIZE)) --alpha 0,control)

# ---------------------------------------------------------------- what people type
.PHONY: help setup data demo quick baseline teachers labels distill control evaluate submission report benchmark test \
  test-faults clean ask one pictures
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+[ :].*## /{sub(/ .*/, "", $$1); printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "Variables, with an example each:"; echo
	@awk -F '##: ' '/^##: /{print "  " $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/installed ## install the requirements into .venv (about 5 GB, two minutes)
# The stamp is touched last: an installation that was cut off is repeated.
$(VENV)/installed: requirements.txt
	$(or $(BASE),python3) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

data $(data)/cifar-10-batches-py/batches.meta: | $(python) ## fetch CIFAR-10 (or take SRC=FILE) into DATA and verify it
	$(PYTHON) train/data.py --data "$(DATA)" $(if $(SRC),--src "$(SRC)")
demo: ## the whole pipeline in miniature, offline, in two to four minutes on two cores
	@echo "Baseline, seven teachers, labels, control and student on 1,000 generated images, a job a core:"
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j$$(getconf _NPROCESSORS_ONLN) SIZE=demo TEACHER_SEED=$(SEED) STAGE=basic FOLD=noval pictures
	@echo; echo "Now look at $(place.demo)$(trial)/report/report.html, and at the logs, curves and answers beside it."
quick: ## train the one network of SIZE=quick on all images and score it on the test set
	@$(MAKE) --no-print-directory SIZE=quick one
one: $(place)/$(name.$(SIZE))-noval$(seed).pt
	$(PYTHON) train/evaluate.py $< $(common) --budget
baseline: $(baseline) ## train the baseline at a STAGE and score it on the test set
	$(PYTHON) train/evaluate.py $< $(common)
teachers: $(call teachers,$(taught)) ## train the seven teachers; -j5 GPUS=4 spreads them over GPUs
labels: $(call labels,$(taught)) ## average the teachers' logits into distillation_labels.csv
distill: $(student) ## train the student from the teachers and score it on the test set
	$(PYTHON) train/evaluate.py $< $(common) --budget
control: $(control) ## train the student's twin from the labels alone and score it
	$(PYTHON) train/evaluate.py $< $(common) --budget
evaluate: | $(python) ## score WEIGHTS on the test set, several as an ensemble (default: the released network)
	$(PYTHON) train/evaluate.py $(WEIGHTS) $(common) $(ARGS)
submission: | $(python) ## answer the unlabelled IMAGES with WEIGHTS (default: the student) into submission.csv
	@$(if $(IMAGES),,echo "submission: set IMAGES, as in make submission IMAGES=cifar_test_nolabel.pkl" >&2; exit 2)
	$(PYTHON) distill/submission.py $(or $(WEIGHTS),$(student)) --images "$(IMAGES)" $(DEVICE:%=--device %) $(ARGS)
report: | $(python) ## tables and pictures of all finished weights of the SIZE, into its folder
	$(PYTHON) train/report.py $(or $(WEIGHTS),$(place)) --out $(place)/report $(common) $(ARGS)

# The end of the demo: answers, the report, and its table.
pictures: $(baseline) $(call teachers,$(source)) $(student) $(control)
	@$(PYTHON) distill/submission.py $(student) --images synthetic --out $(place)/submission$(seed).csv | tail -n 1
	@$(PYTHON) train/report.py $^ $(common) --out $(place)/report --baseline $(baseline) \
	  --teachers $(call teachers,$(source)) --control $(control) --student $(student)
benchmark: | $(ready) ## images per second of the step, the loop and the usual script
	$(PYTHON) train/benchmark.py $(common) $(ARGS)
test: | $(python) ## run the test suite (under 10 minutes on two cores)
	$(PYTHON) -m pytest tests $(ARGS)
test-faults: | $(python) ## kill a run a hundred times and more (slow)
	$(PYTHON) -m pytest tests -m faults $(ARGS)
clean: ## remove caches, never weights and never a state to resume from
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache
