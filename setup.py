"""Packages by rule: the repository root is the package, and every folder with Python in the three rooms follows."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = ["suite", "suite.*", "methods", "methods.*", "tasks", "tasks.*"]
NOT_PACKAGED = {"noxfile", "setup"}


class BuildPackage(build_py):
    """Leave the tools that stand beside the root `__init__.py` out of the wheel."""

    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] not in NOT_PACKAGED]


setup(
    packages=["selfbench", *(f"selfbench.{name}" for name in find_packages(".", include=ROOMS))],
    cmdclass={"build_py": BuildPackage},
)
