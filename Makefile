# make setup   make or update .venv, with all that the package needs, ROS 2 included
# make demo    a simulated drive past several vehicles: camera, node and printer over ROS 2
# make test    the tests; TEST_ARGS="-k solver -x" goes to pytest
# make lint    ruff;      make format  lets ruff mend the formatting
# make docs    regenerate docs/parameters.md and config/refine.yaml
# make clean   remove what building and testing left; make clean-all removes .venv as well
#
# PYTHON=python3.12                                                   another Python for .venv
# PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"   torch without CUDA

PYTHON ?= python3
PIP_ARGS ?=
TEST_ARGS ?=
BIN := .venv/bin

# A ROS 2 installation that is sourced in this shell must not mix with the one in .venv.
unexport AMENT_PREFIX_PATH COLCON_PREFIX_PATH CMAKE_PREFIX_PATH PYTHONPATH PYTHONHOME
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
space := $(subst ,, )
export LD_LIBRARY_PATH := $(subst $(space),:,$(filter-out /opt/ros/%,$(subst :, ,$(LD_LIBRARY_PATH))))

# Only this machine is to see what the tests and the demo publish. Each test run takes a domain of
# its own, so that two at once do not disturb each other.
ROS_ENV := RMW_IMPLEMENTATION=rmw_fastrtps_cpp ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
TEST_DOMAIN := $(shell echo $$((2 + $$$$ % 98)))
DEMO_DOMAIN ?= 77

.PHONY: setup demo test lint format docs clean clean-all

setup:
	@$(PYTHON) tools/make_venv.py $(PIP_ARGS)

demo: setup
	$(ROS_ENV) ROS_DOMAIN_ID=$(DEMO_DOMAIN) $(BIN)/python -m pose_refiner_ros.cli.demo $(DEMO_ARGS)

test: setup
	$(ROS_ENV) ROS_DOMAIN_ID=$(TEST_DOMAIN) ROS_PYTHON_CHECK_FIELDS=1 $(BIN)/python -m pytest $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m pose_refiner_ros.ros.parameters --write

clean:
	rm -rf build dist install log *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all: clean
	rm -rf .venv
