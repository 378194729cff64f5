# The best CIFAR-10 classifier under 5,000,000 parameters. `make help` lists the targets and variables.

DATA    ?= data
VENV    ?= .venv
PYTHON  ?= $(if $(VENV),$(VENV)/bin/python,python3)
BASE    ?= python3
STAGE   ?= augmented
SHELL   := /bin/bash
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# A space cannot stand in the name of a target, unless it is escaped.
space := $(subst ,, )
data  := $(subst $(space),\$(space),$(DATA))

# The images are there in either form, or the archive is fetched; the synthetic set needs nothing.
images := $(data)/$(if $(wildcard $(data)/cifar10.npz),cifar10.npz,cifar-10-batches-py/batches.meta)
images := $(if $(filter synthetic,$(DATA)),,$(images))

# A flag is passed on only when its variable is set.
common := --data "$(DATA)" $(if $(DEVICE),--device $(DEVICE))
flags  := $(common) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SEED),--seed $(SEED)) $(if $(LIMIT),--limit $(LIMIT)) $(ARGS)

# The variables' values are checked before anything runs.
$(if $(filter-out auto cuda cpu,$(DEVICE)),$(error DEVICE=$(DEVICE): should be auto, cuda or cpu))
$(if $(filter-out basic optimized augmented,$(STAGE)),$(error STAGE=$(STAGE): should be basic, optimized or augmented))

installed := $(if $(VENV),$(VENV)/installed)

.PHONY: help setup data demo quick baseline teachers labels distill evaluate submission report benchmark study \
        test test-faults clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "Variables, with an example each:"; echo
	@awk -F '##: ' '/^##: /{print "  " $$2}' $(firstword $(MAKEFILE_LIST))

##: DATA=data           folder of the images, or synthetic          make baseline DATA=synthetic
##: EPOCHS=30           passes over the images                      make baseline EPOCHS=30
##: SEED=1              initial weights, order and augmentation     make baseline SEED=1
##: LIMIT=5000          only so many training images, for a trial   make baseline LIMIT=5000
##: DEVICE=cpu          auto, cuda or cpu                           make baseline DEVICE=cpu
##: GPUS=4              so many jobs at once, each on a free GPU    make -j5 GPUS=4 teachers
##: IMAGES=FILE         images without labels                       make submission IMAGES=test_nolabel.pkl
##: STAGE=basic         basic, optimized or augmented               make baseline STAGE=basic
##: WEIGHTS="a.pt b.pt" the weights to evaluate                     make evaluate WEIGHTS=weights/resnet18-fold0.pt
##: SRC=FILE            an archive or npz that you already have     make data SRC=cifar-10-python.tar.gz
##: ARGS="..."          any further flags of the script             make baseline ARGS="--mix ricap --noval"
##: VENV=               empty: use the python3 at hand              make test VENV=

# ---------------------------------------------------------------- installation and data

setup: $(installed) ## install the requirements into .venv (about 5 GB, two minutes)

# The stamp is touched last: an installation that was cut off is repeated.
$(VENV)/installed: requirements.txt
	$(BASE) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

data: | $(installed) ## fetch CIFAR-10 (or take SRC=FILE) into DATA and verify it
	$(PYTHON) train/data.py --data "$(DATA)" $(if $(SRC),--src "$(SRC)")

$(data)/cifar-10-batches-py/batches.meta: | $(installed)
	$(PYTHON) train/data.py --data "$(DATA)"

# ---------------------------------------------------------------- training

# A weights file is built when it is missing, never because something is newer: every prerequisite is order-only.
chosen   := $(shell echo '$(ARGS)' | sed -nE 's/.*--fold[ =]([0-4]).*/\1/p')
split    := $(if $(findstring --noval,$(ARGS)),noval,fold$(or $(chosen),0))
baseline := weights/resnet18$(if $(filter-out augmented,$(STAGE)),-$(STAGE))-$(split).pt

$(baseline): | $(installed) $(images)
	$(PYTHON) train/baseline.py --stage $(STAGE) $(flags) --out $@

baseline: $(baseline) ## train the baseline at a STAGE and score it on the test set
	$(PYTHON) train/evaluate.py $< $(common)

weights/fastnet-noval.pt: | $(installed) $(images)
	$(PYTHON) train/quick.py --noval $(flags) --out $@

quick: weights/fastnet-noval.pt ## train a small network in minutes and score it on the test set
	$(PYTHON) train/evaluate.py $< $(common) --budget

# With GPUS=N a job takes the first of N GPUS that no other job holds; the lock goes with the process that holds it.
define free_gpu
	$(if $(GPUS),mkdir -p weights; gpu=0; \
	  until exec 9> "weights/.gpu$$gpu.lock" && flock -n 9; do \
	    gpu=$$(( (gpu + 1) % $(GPUS) )); [ $$gpu = 0 ] && sleep 1; \
	  done; export CUDA_VISIBLE_DEVICES=$$gpu; )
endef

folds    := $(foreach fold,0 1 2 3 4,weights/seresnet164-fold$(fold).pt)
teachers := $(folds) weights/seresnet164-noval.pt weights/shakeshake26-64-se-noval.pt

# Before each of them: how long all of them still take.
jobs = $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS))) $(GPUS)
left = @$(PYTHON) train/remaining.py $(teachers) $(if $(strip $(jobs)),--jobs $(jobs))

weights/seresnet164-fold%.pt: | $(installed) $(images)
	$(left)
	$(strip $(free_gpu)) $(PYTHON) train/seresnet.py --fold $* $(flags) --out $@

weights/seresnet164-noval.pt: | $(installed) $(images)
	$(left)
	$(strip $(free_gpu)) $(PYTHON) train/seresnet.py --noval $(flags) --out $@

weights/shakeshake26-64-se-noval.pt: | $(installed) $(images)
	$(left)
	$(strip $(free_gpu)) $(PYTHON) train/shakeshake.py --width 64 --se --noval $(flags) --out $@

teachers: $(teachers) ## train the seven teachers; -j5 GPUS=4 spreads them over GPUs

distillation_labels.csv: | $(teachers)
	$(PYTHON) distill/labels.py $(teachers) $(common) $(if $(LIMIT),--limit $(LIMIT)) --out $@

labels: distillation_labels.csv ## average the teachers' logits into distillation_labels.csv

weights/student.pt: | distillation_labels.csv
	$(PYTHON) distill/student.py --labels distillation_labels.csv --noval $(flags) --out $@

distill: weights/student.pt ## train the student from the labels and score it on the test set
	$(PYTHON) train/evaluate.py $< $(common) --budget

evaluate: | $(installed) $(images) ## score WEIGHTS on the test set, several as an ensemble
	@$(if $(WEIGHTS),,echo "evaluate: set WEIGHTS, as in make evaluate WEIGHTS=weights/student.pt" >&2; exit 2)
	$(PYTHON) train/evaluate.py $(WEIGHTS) $(common) $(ARGS)

submission: | $(installed) ## answer the unlabelled IMAGES with WEIGHTS (default: the student) into submission.csv
	@$(if $(IMAGES),,echo "submission: set IMAGES, as in make submission IMAGES=cifar_test_nolabel.pkl" >&2; exit 2)
	$(PYTHON) distill/submission.py $(or $(WEIGHTS),weights/student.pt) --images "$(IMAGES)" \
	  $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

report: | $(installed) $(images) ## tables and pictures of all finished weights, into weights/report
	$(PYTHON) train/report.py $(WEIGHTS) $(common) $(ARGS)

benchmark: | $(installed) $(images) ## images per second of the step, the loop and the usual script
	$(PYTHON) train/benchmark.py $(common) $(ARGS)

# ---------------------------------------------------------------- the demo

# The pipeline in miniature, on the generated images: the same scripts with other sizes, one thread for each job.
# A teacher trains for longer than the student: at as many epochs the control, on all images, outgrows the teachers.
demo     := weights/demo$(SEED:%=-seed%)
cores    := $(shell nproc 2>/dev/null || echo 2)
demo_on  := --data synthetic --device $(or $(DEVICE),cpu)
small    := $(demo_on) --limit 1000 -b 32 --augment flip --mix none --seed $(or $(SEED),0)
narrow   := --width 8 --wd 5e-4
learners := $(addprefix $(demo)/,shakeshake.pt all.pt fold0.pt fold1.pt fold2.pt fold3.pt fold4.pt)
singles  := $(addprefix $(demo)/,baseline.pt control.pt)

# $(call stage,what it is,script and flags): keeps the output in a log and shows its last line.
define stage
@mkdir -p $(@D)
@$(PYTHON) $(2) --out $@ > $(@:.pt=.log) 2>&1 || { cat $(@:.pt=.log) >&2; exit 1; }
@printf '%-36s %s\n' "$(1)" "$$(tail -n 1 $(@:.pt=.log) | sed 's/^[^:]*: //')"
endef

$(demo)/shakeshake.pt: | $(installed)
	$(call stage,teacher: Shake-Shake-26 on all,train/shakeshake.py --noval --width 8 --lr 0.03 --epochs 12 $(small))

$(demo)/all.pt: | $(installed)
	$(call stage,teacher: SEResNet-20 on all,train/seresnet.py --noval --depth 20 $(narrow) --epochs 8 $(small))

$(demo)/fold%.pt: | $(installed)
	$(call stage,teacher: SEResNet-20 without fold $*,train/seresnet.py --fold $* --depth 20 $(narrow) --epochs 8 $(small))

$(demo)/baseline.pt: | $(installed)
	$(call stage,baseline: ResNet-18,train/baseline.py --noval --stage basic --width 4 --epochs 6 $(small))

$(demo)/control.pt: | $(installed)
	$(call stage,control: SEResNet-20 from the labels,distill/student.py --noval --alpha 0 --model seresnet20 $(narrow) --lr 0.05 --epochs 5 $(small))

$(demo)/labels.csv: | $(learners)
	@$(PYTHON) distill/labels.py $(learners) $(demo_on) --limit 1000 --out $@

$(demo)/student.pt: | $(demo)/labels.csv
	$(call stage,student: SEResNet-20 from the teachers,distill/student.py --noval --labels $(demo)/labels.csv --model seresnet20 $(narrow) --lr 0.05 --epochs 5 $(small))

$(demo)/submission.csv: | $(demo)/student.pt
	@$(PYTHON) distill/submission.py $(demo)/student.pt --images synthetic --out $@ | tail -n 1

$(demo)/report/report.html: | $(learners) $(singles) $(demo)/student.pt
	@$(PYTHON) train/report.py $(learners) $(singles) $(demo)/student.pt $(demo_on) --out $(@D) \
	  --ensemble ensemble $(learners) > $(demo)/report.log

$(demo)/comparison.txt: | $(learners) $(singles) $(demo)/student.pt
	@$(PYTHON) distill/compare.py --baseline $(demo)/baseline.pt --teachers $(learners) --control $(demo)/control.pt \
	  --student $(demo)/student.pt $(demo_on) > $@

results := $(addprefix $(demo)/,submission.csv report/report.html comparison.txt)

demo: | $(installed) ## the whole pipeline in miniature, offline, in two to four minutes on two cores
	@echo "Baseline, seven teachers, labels, control and student on 1,000 generated images, $(cores) jobs at once:"
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j$(cores) $(learners) $(singles) $(demo)/student.pt $(results)
	@echo; cat $(demo)/comparison.txt
	@echo; echo "Now look at $(demo)/report/report.html, and at the logs, curves and answers in $(demo)."

# ---------------------------------------------------------------- the study

# The recipes on the real images, as small as two CPU cores can train them at three seeds: baseline stages, fold
# teachers and students on all images, and every way to distil on few of them, 10,000. Of the variables DATA and
# DEVICE count. One thread for each job. half: students that train half as long as their teachers.
study    := weights/study
study_on := --data "$(DATA)" --device $(or $(DEVICE),cpu)
all      := $(study_on) --epochs 4
half     := $(study_on) --epochs 2
few      := $(study_on) --limit 10000 --epochs 10 -b 64
plain    := --augment crop,flip --mix none
seeds    := 0 1 2
# $(call runs,names,seeds or folds) are the weights of every name with every number behind it.
runs      = $(foreach number,$(2),$(foreach name,$(1),$(study)/$(name)$(number).pt))
teachers_all := $(call runs,teacher-fold,0 1 2 3 4)
teachers_few := $(call runs,few-teacher-fold,0 1 2 3 4)
stages       := $(call runs,basic-seed optimized-seed augmented-seed,$(seeds))
students_all := $(call runs,control-seed student-seed half-control-seed half-student-seed,$(seeds))
students_few := $(call runs,few-control-seed few-mean-seed few-oof-seed few-view-seed,$(seeds))

$(stages): $(study)/%.pt: | $(installed) $(images)
	$(call stage,$(@F:.pt=),train/baseline.py --stage $(subst -seed, --seed ,$*) --width 8 --noval $(all))

$(study)/teacher-fold%.pt: | $(installed) $(images)
	$(call stage,$(@F:.pt=),train/seresnet.py --depth 20 --width 8 --fold $* $(all) $(plain))

$(study)/labels.csv: | $(teachers_all)
	$(PYTHON) distill/labels.py $(teachers_all) $(study_on) --out $@

student := --model seresnet20 --width 8 --noval $(plain)

$(study)/student-seed%.pt: | $(study)/labels.csv
	$(call stage,$(@F:.pt=),distill/student.py --labels $(study)/labels.csv $(student) $(all) --seed $*)

$(study)/control-seed%.pt: | $(installed) $(images)
	$(call stage,$(@F:.pt=),distill/student.py --alpha 0 $(student) $(all) --seed $*)

$(study)/half-student-seed%.pt: | $(study)/labels.csv
	$(call stage,$(@F:.pt=),distill/student.py --labels $(study)/labels.csv $(student) $(half) --seed $*)

$(study)/half-control-seed%.pt: | $(installed) $(images)
	$(call stage,$(@F:.pt=),distill/student.py --alpha 0 $(student) $(half) --seed $*)

few_student := --model resnet18 --width 8 --noval --wd 5e-4 $(few) $(plain)

$(study)/few-teacher-fold%.pt: | $(installed) $(images)
	$(call stage,$(@F:.pt=),train/baseline.py --stage optimized --width 16 --fold $* $(few))

$(study)/few-mean.csv $(study)/few-oof.csv: | $(teachers_few)
	$(PYTHON) distill/labels.py $(teachers_few) $(study_on) --limit 10000 --average $(patsubst few-%.csv,%,$(@F)) --out $@

$(study)/few-control-seed%.pt: | $(installed) $(images)
	$(call stage,$(@F:.pt=),distill/student.py --alpha 0 $(few_student) --seed $*)

$(study)/few-mean-seed%.pt: | $(study)/few-mean.csv
	$(call stage,$(@F:.pt=),distill/student.py --labels $(study)/few-mean.csv $(few_student) --seed $*)

$(study)/few-oof-seed%.pt: | $(study)/few-oof.csv
	$(call stage,$(@F:.pt=),distill/student.py --labels $(study)/few-oof.csv $(few_student) --seed $*)

$(study)/few-view-seed%.pt: | $(teachers_few)
	$(call stage,$(@F:.pt=),distill/student.py --teachers $(teachers_few) $(few_student) --seed $*)

study: | $(installed) $(images) ## small networks on the real images at three seeds, in two hours on two cores
	for part in "$(teachers_few)" "$(students_few) $(teachers_all)" "$(students_all) $(stages)"; do \
	  OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j$(cores) $$part || exit 1; \
	done
	$(PYTHON) train/report.py $(study) $(study_on) --out $(study)/report \
	  --ensemble teachers $(teachers_all) --ensemble few-teachers $(teachers_few) $(ARGS)

# ---------------------------------------------------------------- housekeeping

test: | $(installed) ## run the test suite (under 10 minutes on two cores)
	$(PYTHON) -m pytest tests $(ARGS)

test-faults: | $(installed) ## kill a run a hundred times and more (slow)
	$(PYTHON) -m pytest tests -m faults $(ARGS)

clean: ## remove caches and the resume states of finished runs, never weights
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache
	for last in weights/*.last.pt weights/*/*.last.pt; do \
	  run=$${last%.last.pt}; [ -f "$$run.pt" ] && rm -f "$$run.last.pt" "$$run.last.bak"; \
	done; true
