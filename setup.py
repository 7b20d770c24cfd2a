from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "pose_refiner_ros"


def data_files_below(package):
    """Everything in the package's data folders, as paths relative to the package."""
    root = Path(package)
    return [
        str(path.relative_to(root))
        for folder in root.glob("**/data")
        for path in folder.rglob("*")
        if path.is_file()
    ]


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: data_files_below(PACKAGE)},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.py")),
        (f"share/{PACKAGE}/config", glob("config/*")),
    ],
    python_requires=">=3.10",
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"], "photos": ["pycolmap"]},
    zip_safe=False,
    author="pose_refiner_ros developers",
    maintainer="pose_refiner_ros developers",
    maintainer_email="pose-refiner-ros@users.noreply.github.com",
    description="Refined 6-DoF poses of known objects from camera images and instance masks.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "pose-refiner = pose_refiner_ros.cli:main",
            "pose_refiner = pose_refiner_ros.ros.node:main",
            "demo_camera = pose_refiner_ros.ros.demo_camera:main",
            "demo_printer = pose_refiner_ros.ros.demo_printer:main",
        ],
    },
)
