"""Everything but the list of packages stands in pyproject.toml.

A wheel carries the clone's folders `data` and `notebooks` as parts of the package; `alignkit.files` finds either.
"""

from setuptools import find_packages, setup

CARRIED = {"alignkit.data": "data", "alignkit.notebooks": "notebooks"}

setup(packages=[*find_packages(include=["alignkit*"]), *CARRIED], package_dir=CARRIED)
