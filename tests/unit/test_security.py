"""The package never runs data as code, and every dependency is pinned to one version."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("layerskip_vllm", "examples") for path in (ROOT / folder).rglob("*.py")
)
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

CODE_IN_DATA = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
"""Modules whose loaders can run code from the data."""

CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen"}
SWITCHES = {"trust_remote_code": True, "shell": True, "allow_pickle": True, "weights_only": False}


def name_of(node: ast.expr) -> str:
    """The dotted name of an expression, such as `torch.load` or `eval`; "" for others."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return set()


def safe_loaders(tree: ast.AST) -> set[str]:
    """Loaders of plain values only: yaml's SafeLoader, and the file's classes that extend it."""
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    own = {c.name for c in classes if "yaml.SafeLoader" in map(name_of, c.bases)}
    return {"yaml.SafeLoader", *own}


def dangers(source: str) -> list[str]:
    """Imports and calls in a source that can run data as code."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        found += [f"imports {module}" for module in imported(node) & CODE_IN_DATA]
        if not isinstance(node, ast.Call):
            continue
        called, keywords = name_of(node.func), {k.arg: k.value for k in node.keywords}
        if called in CALLS:
            found.append(f"calls {called}")
        if called == "yaml.load" and name_of(keywords.get("Loader")) not in safe_loaders(tree):
            found.append("calls yaml.load without a safe loader")
        for switch, bad in SWITCHES.items():
            value = keywords.get(switch)
            if value is not None and (not isinstance(value, ast.Constant) or value.value == bad):
                found.append(f"passes {switch}={ast.unparse(value)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_data_as_code(path):
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=args.trust)",
        "subprocess.run('x', shell=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class L(yaml.Loader): ...\nyaml.load(text, Loader=L)",
        "eval(text)",
    ],
)
def test_each_danger_is_found(source):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.compile(model)",
        "class L(yaml.SafeLoader): ...\nyaml.load(text, Loader=L)",
        "AutoModel.from_pretrained('x', trust_remote_code=False)",
    ],
)
def test_harmless_calls_are_allowed(source):
    assert dangers(source) == []


def test_self_speculation_does_not_trust_code_of_a_checkpoint(random_llama):
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(random_llama(), max_model_len=64, spec_model="self:3")
    assert config.create_engine_config().model_config.trust_remote_code is False


def pins(lock: Path) -> list[tuple[str, list[str]]]:
    """Each requirement of the file with what follows it."""
    text = re.sub(r"#.*", "", lock.read_text()).replace("\\\n", " ")
    found = [line.split() for line in text.splitlines() if line.strip()]
    assert found
    return [(pin, rest) for pin, *rest in found]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_dependency_is_pinned_to_one_version(lock):
    version = r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_]+"
    loose = [pin for pin, _ in pins(lock) if not re.fullmatch(version, pin)]
    assert loose == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_the_hash_of_a_wheel(lock):
    unchecked = [
        pin
        for pin, hashes in pins(lock)
        if not hashes or not all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes)
    ]
    assert unchecked == []
