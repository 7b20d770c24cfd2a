"""Generate the message packages of interfaces/ into the virtual environment that runs this.

rosidl comes as wheels, and so do CMake and Ninja; a C and C++ compiler must be there.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PREFIX = Path(sys.prefix)
PACKAGES = ["tf2_msgs", "vision_msgs"]
INTERFACES = Path(__file__).resolve().parent.parent / "interfaces"


def main():
    name_this_python_in_cmake_files()
    with tempfile.TemporaryDirectory(prefix="messages_") as folder:
        for package in PACKAGES:
            build(package, Path(folder) / package)
    check_import()


def name_this_python_in_cmake_files():
    """The wheels' CMake files name folders of the machine that they were built on."""
    here = {
        r"/opt/python/[^/;\"]+/include/python[\d.]+": sysconfig.get_path("include"),
        r"/opt/python/[^/;\"]+/lib/python[\d.]+/site-packages": sysconfig.get_path("purelib"),
    }
    for path in PREFIX.glob("share/*/cmake/*__rosidl_generator_pyExport.cmake"):
        text = path.read_text()
        corrected = text
        for there, folder in here.items():
            corrected = re.sub(there, folder, corrected)
        if corrected != text:
            path.write_text(corrected)


def build(package, folder):
    binaries = PREFIX / "bin"
    # The compiled libraries go where those of the wheels are, so they are found without settings.
    site_packages = Path(sysconfig.get_path("purelib")).relative_to(PREFIX)
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": str(PREFIX),
        "CMAKE_PREFIX_PATH": str(PREFIX),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    configure = [
        binaries / "cmake",
        *("-G", "Ninja"),
        *("-S", INTERFACES / package),
        *("-B", folder),
        f"-DCMAKE_INSTALL_PREFIX={PREFIX}",
        f"-DPYTHON_INSTALL_DIR={site_packages}",
        f"-DPython3_EXECUTABLE={binaries / 'python'}",
        "-DBUILD_TESTING=OFF",
    ]
    for command in [configure, [binaries / "ninja", "-C", folder, "install"]]:
        result = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode != 0:
            sys.exit(f"{result.stdout}\nCould not build the messages of {package}, see above.")


def check_import():
    code = "; ".join(f"import {package}.msg as m; m" for package in PACKAGES)
    subprocess.run([sys.executable, "-c", f"import rclpy; {code}"], check=True)


if __name__ == "__main__":
    main()
