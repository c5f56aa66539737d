# Needs Python 3.11 or newer with pip, and make. Everything else goes into .venv.
PYTHON ?= python3
PRESET ?= demo
SEED ?= 0
OUT ?= runs/demo
# What JupyterLab is told besides, e.g. make lab LAB="--port=9000 --no-browser"
LAB ?=
# The Python that `make test-lowest` tries, and the tag that `make dist` builds for, e.g. v0.1.0
LOWEST_PYTHON ?= python3.11
TAG ?=
PHOTOGRAPHS := explore compare view3d_niivue view3d_itk monitor

BIN := .venv/bin
READY := .venv/.ready
# What runs a notebook finds the programs and the kernel of .venv before any other.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help setup demo lab test tree notebooks experiments tests browser photographs results bench docs export readme \
  samples lint hooks test-lowest fuzz soak stories dist clean
.NOTPARALLEL:

help:
	@echo "make demo       train on phantoms and judge the result: $(OUT)/ (also: make demo SEED=1 OUT=runs/demo-1)"
	@echo "make lab        open JupyterLab on the lessons, nbs/tutorials/"
	@echo "make test       check everything: tree, notebooks, tests, packages, and what is seen in a browser (with Chromium)"
	@echo "make lint       check the style: lines of at most 120 columns, imports (also part of make test)"
	@echo "make experiments run every experiment notebook once, in seconds (preset smoke)"
	@echo "make results    build nbs/experiments/results.ipynb from results/*.json"
	@echo "make bench      measure speed and memory on this machine: bench/README.md"
	@echo "make fuzz       spoilt inputs of every kind, by the thousand"
	@echo "make soak       three hundred kills, full disks, crowds, thousands of inferences: half an hour"
	@echo "make stories    three persons, from their scans to what they came for, by commands alone: a quarter of an hour"
	@echo "make test-lowest test the lowest versions that pyproject.toml promises, in an environment of its own: .venv-lowest"
	@echo "make hooks      let git check the style, and that cssgan/ is in step with the notebooks, before each commit"
	@echo "make docs       build the website in _docs/ (with Quarto)"
	@echo "make export     notebooks -> cssgan/, clean notebooks, README.md"
	@echo "make photographs take the documentation's pictures of the viewers again (with Chromium)"
	@echo "make samples    write data_samples/ again"
	@echo "make dist       build the packages in dist/ (TAG=v0.1.0: refuse if that is not the version)"
	@echo "make clean      remove .venv and what was built (runs/ stays)"

setup: $(READY)

# The stamp is younger than the two files it was made from, or set-up runs again.
# etc/ keeps JupyterLab from loading scripts of others with every page; a wheel brings it along, an editable
# installation does not.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "cssgan needs Python 3.11 or newer, and '$(PYTHON)' is not: name one that is, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv >/dev/null 2>&1 || \
	{ $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; } >/dev/null 2>&1 || \
	{ echo "'$(PYTHON)' cannot make .venv: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up .venv, once (PyTorch is large: this takes some minutes)"
	@$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	@cp -R etc .venv/
	@touch $@

demo: $(READY)
	@mkdir -p '$(OUT)'
	@echo "Training on phantoms: some minutes on two cores. The bar counts cells; a few of them take most of the time"
	$(RUN) -m papermill --progress-bar -r preset '$(PRESET)' -p seed '$(SEED)' -r out_dir '$(OUT)' \
	  nbs/experiments/quickstart.ipynb '$(OUT)/quickstart.ipynb'
	@echo "Done. The numbers: $(OUT)/metrics.json. The story with pictures: $(OUT)/quickstart.ipynb"

lab: $(READY)
	$(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/nbs/tutorials $(LAB)

test: tree notebooks tests browser

# With the style: tests/test_tree.py runs what `make lint` runs.
tree: $(READY)
	$(RUN) -m pytest tests/test_tree.py

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(RUN) $(BIN)/nbdev_test --do_print --timing

experiments: $(READY)
	$(RUN) -m pytest tests/test_experiments.py

# Two at a time, one thread each; what is tested in one file stays together, and the longest files begin.
LONG := $(addprefix tests/test_,sweeps.py experiments.py tutorials.py safety.py)
tests: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 $(LONG) \
	  $(filter-out $(LONG) tests/test_tree.py tests/test_browser.py,$(sort $(wildcard tests/test_*.py)))

# Two browsers, each with a JupyterLab of its own.
browser: $(READY)
	$(RUN) -m pytest -n 2 --dist load --durations=16 tests/test_browser.py

lint: $(READY)
	$(BIN)/ruff check --output-format=concise nbs tests bench tools cssgan

# The oldest Python and the lowest versions, kept apart from .venv. What is left out takes many minutes, needs a browser
# or a network, or does not depend on them.
LOWEST := .venv-lowest
LEFT_OUT := $(patsubst %,tests/test_%.py,tree docs packaging browser bench tutorials experiments sweeps safety parallel)
# Two tests ask for what is newer: NRRD's space left-anterior-superior, which ITK itself reads wrongly before SimpleITK
# 2.5.7 (cssgan reads that header without it), and ipyniivue, which tools/lowest.py leaves out.
NEWER := tests/test_files.py::test_every_space_of_a_patient_is_read_as_itk_reads_it \
  tests/test_explore.py::test_a_viewer_that_fails_gives_way
$(LOWEST)/.ready: pyproject.toml constraints.txt tools/lowest.py
	@command -v $(LOWEST_PYTHON) >/dev/null || \
	{ echo "make test-lowest needs Python 3.11: name it, e.g. make test-lowest LOWEST_PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python tools/lowest.py > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install -e . -r $(LOWEST)/requirements.txt
	cp -R etc $(LOWEST)/
	@touch $@

test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(LOWEST)/bin:$$PATH" $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile \
	  --durations=15 $(NEWER:%=--deselect %) $(filter-out $(LEFT_OUT),$(sort $(wildcard tests/test_*.py)))

hooks: $(READY)
	git config core.hooksPath tools/hooks
	git config merge.nbdev-merge.name "nbdev's merge of notebooks, cell by cell"
	git config merge.nbdev-merge.driver '$(BIN)/nbdev_merge %O %A %B %P'

# What takes too long for every day: see the top of each file.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -q tests/long/fuzz.py

soak: $(READY)
	$(RUN) tests/long/soak.py

stories: $(READY)
	$(RUN) -m pytest -q -s tests/long/stories.py

# The documentation shows what the tests of the viewers saw; all their photographs are in runs/photographs/.
photographs: $(READY)
	CSSGAN_PHOTOS=runs/photographs $(RUN) -m pytest tests/test_browser.py
	cp $(PHOTOGRAPHS:%=runs/photographs/%.png) nbs/images/

results: $(READY)
	$(RUN) -m papermill --progress-bar --cwd nbs/experiments nbs/experiments/results.ipynb nbs/experiments/results.ipynb
	$(BIN)/nbdev_clean

bench: $(READY)
	$(RUN) bench/run.py

# Not nbdev_docs, which would write README.md in another way than `make readme`.
docs: $(READY)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto, the program that makes the pages: install it \
	from https://quarto.org (Get Started), then run make docs again; JupyterLab shows the same notebooks without it" >&2; exit 1; }
	rm -rf _proc _docs
	$(RUN) -c 'from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; refresh_quarto_yml(); proc_nbs()'
	cd _proc && quarto render --no-cache
	mv _proc/_docs _docs
	@echo "Open _docs/index.html"

export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

readme: $(READY)
	$(BIN)/python tools/readme.py

samples: $(READY)
	$(BIN)/cssgan_phantom --samples data_samples --force

dist: $(READY)
	@$(RUN) -c 'import sys, cssgan; tag, want = sys.argv[1], "v" + cssgan.__version__; \
	sys.exit(tag not in ("", want) and f"the tag is {tag}, and this is {want}: see CONTRIBUTING.md, A release")' '$(TAG)'
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf .venv $(LOWEST) _proc _docs build dist cssgan.egg-info .pytest_cache .ruff_cache
