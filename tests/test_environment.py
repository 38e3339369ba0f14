"""What the project stands on: dependencies that agree, imports in one direction, nothing unsafe or large."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from alignkit.files import DATA, NOTEBOOKS, ROOT

CONDA = {"torch": "pytorch"}  # where conda calls it otherwise
IMPORTED_AS = {
    "crowd-kit": "crowdkit",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
NOT_IMPORTED = {
    "jupyterlab": "make lab",
    "ipywidgets": "tqdm draws its bars with them",
    "pytest-xdist": "make test",
    "ruff": "a command",
}
# imported as well, and always there because a declared package stands on them
COMPANIONS = {
    "numpy": "scipy",
    "pyarrow": "datasets",
    "tokenizers": "transformers",
    "safetensors": "transformers",
    "jupyter_client": "nbclient",
    "IPython": "ipywidgets",
    "packaging": "pytest",
    "setuptools": "torch",
}

PACKAGE = sorted((ROOT / "alignkit").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
EXECUTED = sorted(NOTEBOOKS.glob("*.ipynb"))


@cache
def tree(path: Path) -> ast.Module:
    """The code of a Python file, or of a notebook's cells without their magics."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = re.sub(r"(?m)^\s*[%!].*$", "", "\n".join("".join(cell["source"]) for cell in cells))
    return ast.parse(text)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[str]:
    """Dotted names of what a file imports, wherever in it: `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import; write it in full"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


# --- dependencies


def asked_for(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for, with these extras and those that they name, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, todo, groups = {}, [*map(Requirement, project["dependencies"])], list(extras)
    while groups or todo:
        if not todo:
            todo = [*map(Requirement, project["optional-dependencies"][groups.pop()])]
            continue
        requirement = todo.pop()
        if requirement.name == "alignkit":
            groups += requirement.extras
        else:
            found[canonical(requirement.name)] = requirement
    return found


@cache
def declared() -> dict[str, Requirement]:
    """All that pyproject.toml asks for: development includes every other extra."""
    return asked_for("dev")


def test_development_has_all_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert asked_for(*extras) == declared()


CORE_ONLY = """
import builtins, sys
really = builtins.__import__
def import_core(name, scope=None, *rest, **named):  # to our own code it is as if these were not installed
    if name.split('.')[0] in {absent!r} and (scope or {{}}).get('__name__', '').startswith('alignkit'):
        raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
    return really(name, scope, *rest, **named)
builtins.__import__ = import_core
"""


def without_extras(code: str) -> subprocess.CompletedProcess:
    """Run code in a Python where only the core's dependencies can be imported."""
    extras = set(declared()) - set(asked_for())
    absent = sorted({IMPORTED_AS.get(name, name) for name in extras} | {"IPython", "jupyter_client"})
    whole = CORE_ONLY.format(absent=absent) + code
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_core_needs_no_extra():
    code = "from alignkit import catalog, claims, evaluation, feedback, load_policy, optimize, rewards, worlds\n"
    code += "claims.summarize(); catalog.load(); world, patient = worlds.load('assistant'), load_policy('assistant')\n"
    code += "pairs = feedback.compare(world, patient, feedback.Annotator(), n=16)\n"
    code += "print(len(pairs), evaluation.chart(world, patient, n=2).table.shape)"
    done = without_extras(code)
    assert done.returncode == 0 and done.stdout.startswith("16 "), done.stderr


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import alignkit.plots", "needs matplotlib; install it with: pip install 'alignkit[notebooks]'"),
        ("import alignkit.checkup", "alignkit[checkup]"),
        ("sys.argv = ['alignkit', 'run']; from alignkit.lab.cli import main; main()", "alignkit[notebooks]"),
        ("sys.argv = ['alignkit', 'diagnose', 'x']; from alignkit.lab.cli import main; main()", "alignkit[checkup]"),
    ],
)
def test_what_an_extra_brings_is_asked_for_by_its_name(code, told):
    done = without_extras(code)
    assert done.returncode and told in done.stderr.splitlines()[-1]


LIGHT = "import sys; {}; print(sorted({{'torch', 'pandas', 'numpy', 'transformers', 'datasets', 'scipy', 'sklearn', "
LIGHT += "'matplotlib', 'nbformat', 'yaml', 'rich.progress'}} & set(sys.modules)))"


@pytest.mark.parametrize("code", ["import alignkit", "import alignkit.lab.cli"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@cache
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pinned}


def test_conda_and_pyproject_ask_for_the_same():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert listed[-1] == {"pip": ["-e ."]}
    conda = {Requirement(line).name: Requirement(line).specifier for line in listed[:-1]}
    wanted = {CONDA.get(name, name): requirement.specifier for name, requirement in declared().items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{conda.pop('python')}" == project["requires-python"]
    conda.pop("pip")
    assert conda == wanted


def test_pins_are_exact_and_lie_in_the_ranges():
    for name, version in pins().items():
        assert re.fullmatch(r"\d+(\.\w+)*", version), (
            name,
            version,
        )  # no "+cpu": that is one machine's build
    for name, requirement in declared().items():
        assert name in pins(), f"{name} has no pin in constraints.txt"
        assert pins()[name] in requirement.specifier, requirement
    assert not {"pip", "setuptools"} & set(pins())


def test_nothing_is_pinned_that_nothing_needs():
    needed, todo = set(), list(declared().values())
    while todo:
        requirement = todo.pop()
        key = (canonical(requirement.name), *sorted(requirement.extras))
        if key in needed:
            continue
        needed.add(key)
        try:
            further = map(Requirement, metadata.requires(requirement.name) or [])
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        for other in further:
            extra = re.search(r"extra == ['\"]([^'\"]+)", str(other.marker))
            if not extra or extra[1] in requirement.extras:
                todo.append(other)
    assert set(pins()) <= {name for name, *_ in needed}


@pytest.mark.parametrize("name", sorted(declared()))
def test_what_is_installed_lies_in_the_range(name):
    assert declared()[name].specifier.contains(metadata.version(name), prereleases=True)


def test_dependencies_are_what_is_imported():
    imported = {name.split(".")[0] for path in PACKAGE + TESTS + EXECUTED for name in imports(path)}
    imported -= {*sys.stdlib_module_names, "alignkit", "tests", *(path.stem for path in TESTS)}
    provided = {IMPORTED_AS.get(name, name) for name in declared() if name not in NOT_IMPORTED}
    assert provided <= imported, "a dependency that nothing imports"
    assert imported <= provided | set(COMPANIONS), "an import that no dependency stands for"
    for name, owner in COMPANIONS.items():
        assert owner in declared()
        assert canonical(name) in {canonical(Requirement(r).name) for r in metadata.requires(owner)}, name


# --- the code


#: One flow; a room imports only what lies to its left.
ROOMS = ["worlds", "feedback", "rewards", "optimize", "evaluation", "checkup"]
#: Open to every room; itself in none.
GROUND = {"errors", "files", "intervals", "loading", "plots", "policy", "sampling", "taxonomy", "tokens", "training"}
BETWEEN = {"pictures"}  # right of the worlds (it draws their scenes), left of all other rooms
LEDGER = {"catalog", "claims"}  # beside the flow: what is claimed and by whom, on ground alone
LONGEST = 400  # lines of a file


def project_imports(path: Path) -> set[str]:
    """The first names below `alignkit` that a file imports."""
    found = {name.removeprefix("alignkit.").split(".")[0] for name in imports(path) if "alignkit." in name}
    return found & {p.stem for p in (ROOT / "alignkit").iterdir()}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_to_its_left(room):
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *GROUND, *(BETWEEN if room != "worlds" else ())}
    for path in (ROOT / "alignkit" / room).rglob("*.py"):
        assert project_imports(path) <= allowed, name_of(path)


@pytest.mark.parametrize("module", sorted(GROUND))
def test_shared_ground_stands_in_no_room(module):
    assert project_imports(ROOT / "alignkit" / f"{module}.py") <= GROUND


@pytest.mark.parametrize("module", sorted(BETWEEN))
def test_what_stands_between_rooms_imports_the_worlds_alone(module):
    assert project_imports(ROOT / "alignkit" / f"{module}.py") <= {*GROUND, "worlds"}


def test_the_ledger_stands_on_ground_alone():
    for path in [ROOT / "alignkit" / "catalog.py", *(ROOT / "alignkit" / "claims").rglob("*.py")]:
        assert project_imports(path) <= {*GROUND, *LEDGER}, name_of(path)


def test_every_part_of_the_package_has_its_place():
    here = (ROOT / "alignkit").iterdir()
    parts = {path.stem for path in here if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == {*ROOMS, *GROUND, *BETWEEN, *LEDGER, "lab"}


# Files of the package by their dotted names
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE}


def modules_of(path: Path) -> set[str]:
    """The files of the package that a file imports when it is loaded (not inside its functions)."""
    found = set()
    for node in tree(path).body:
        names = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            found |= {name if name in MODULES else name.rpartition(".")[0]}
    return (found & set(MODULES)) - {"alignkit"}


def test_imports_run_in_no_circle():
    TopologicalSorter({name: modules_of(path) - {name} for name, path in MODULES.items()}).prepare()


OWN = ("self", "cls", "super()")


@cache
def underscored(path: Path, stored: bool) -> set[str]:
    """The private names that a file makes (`stored`), or that it reads of an object other than itself."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and stored:
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store) and stored:
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Attribute) and not stored and ast.unparse(node.value) not in OWN:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not stored and node.module.startswith("alignkit"):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("path", [*PACKAGE, *EXECUTED], ids=name_of)
def test_no_file_uses_anothers_private_names(path):
    made = {name for other in PACKAGE if other != path for name in underscored(other, stored=True)}
    assert not (underscored(path, stored=False) - underscored(path, stored=True)) & made


def test_the_search_for_private_names_finds_them(tmp_path):
    maker, user = tmp_path / "maker.py", tmp_path / "user.py"
    maker.write_text("class A:\n    def _deep(self):\n        self._kept = _made\n_made = 1")
    user.write_text("from alignkit.maker import _made, A\nA()._deep()\nself._own\nx._kept")
    assert underscored(maker, stored=True) == {"_deep", "_kept", "_made"}
    assert underscored(user, stored=False) == {"_deep", "_kept", "_made"}


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_files_are_short_enough_to_be_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def unsafe(node: ast.AST) -> str | None:
    """What makes a call unsafe for data from elsewhere."""
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    if called in ("eval", "exec", "compile", "__import__"):
        return called
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    if called == "torch.load" and options.get("weights_only") != "True":
        return called
    if called in ("yaml.load", "os.system") or called.endswith("read_pickle"):
        return called
    for option in node.keywords:
        is_false = isinstance(option.value, ast.Constant) and option.value.value is False
        if option.arg in ("trust_remote_code", "allow_pickle", "shell") and not is_false:
            return option.arg
    return None


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_no_code_from_data(path):
    assert not {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"} & {
        name.split(".")[0] for name in imports(path)
    }
    found = [(node.lineno, unsafe(node)) for node in ast.walk(tree(path)) if unsafe(node)]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "torch.load(p)",
        "torch.load(p, weights_only=x)",
        "f(p, trust_remote_code=True)",
        "np.load(p, allow_pickle=y)",
        "pd.read_pickle(p)",
    ],
)
def test_the_search_for_unsafe_calls_finds_them(code):
    assert unsafe(ast.parse(code).body[0].value)
    assert not unsafe(ast.parse("model.eval()").body[0].value)
    assert not unsafe(ast.parse("f(trust_remote_code=False)").body[0].value)
    assert not unsafe(ast.parse("torch.load(p, weights_only=True)").body[0].value)


# --- the files


def size(*paths: Path) -> float:
    """Megabytes."""
    return sum(path.stat().st_size for path in paths) / 1e6


def test_models_are_small_and_hold_no_code():
    folders = [path for path in (DATA / "models").iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}, folder.name
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
        assert size(*folder.iterdir()) <= 4, folder.name


def test_data_and_notebooks_are_small():
    assert size(*(path for path in DATA.rglob("*") if path.is_file())) <= 40
    assert not [path.name for path in EXECUTED if size(path) > 1]


SHARED = ["pyproject.toml", "setup.py", "Makefile", "constraints.txt", "environment.yml", "CITATION.cff", ".ci/run"]
HOME = re.compile(r"(?<![\w.~-])/(?:home|Users|root|tmp)/\w+")
REGISTRY = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org)|--(?:find-links|(?:extra-)?index-url)"
)


@pytest.mark.parametrize("path", [*(ROOT / name for name in SHARED), *PACKAGE, *TESTS, *EXECUTED], ids=name_of)
def test_nothing_points_to_one_machine_or_registry(path):
    text = path.read_text(encoding="utf-8")
    assert not HOME.search(text)
    assert not REGISTRY.search(text)
