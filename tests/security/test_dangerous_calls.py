"""No module runs what it reads: the few calls that could are listed here, each with its reason."""

import ast
from pathlib import Path

import pytest

import lmscale

ROOT = Path(lmscale.__file__).parents[1]
FILES = sorted([*(ROOT / "lmscale").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")])

NAMES = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "pickle": {"load", "loads", "Unpickler"},
    "torch": {"load", "save"},
    "dist": {
        "broadcast_object_list",
        "all_gather_object",
        "gather_object",
        "scatter_object_list",
        "send_object_list",
        "recv_object_list",
    },
    "yaml": {
        "load",
        "load_all",
        "unsafe_load",
        "full_load",
        "UnsafeLoader",
        "FullLoader",
        "Loader",
    },
    "os": {"system", "popen"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "joblib": {"load"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "tempfile": {"mktemp"},
}
ANYWHERE = {"extract", "extractall", "unpack_archive"}
NUMPY_READS = {("np", "load"), ("numpy", "load"), ("format", "read_array")}

ALLOWED = {
    ("lmscale/stream/worker.py", "pickle.loads"): "of an error that this very process has pickled",
    ("lmscale/stream/loader.py", "pickle.loads"): "of a stream that this very process has pickled",
}


def dotted(node):
    """``a.b.c`` → its last two names."""
    if isinstance(node, ast.Attribute):
        owner = node.value
        name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        return name, node.attr
    return "", getattr(node, "id", "")


def find_dangers(tree):
    """(line, what) of every call, or name, that runs or unpickles what it is given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in METHODS.get((node.module or "").split(".")[-1], ()):
                    yield node.lineno, f"{node.module}.{alias.name}"
        if isinstance(node, ast.Attribute):
            owner, name = dotted(node)
            if name in METHODS.get(owner, ()) or name in ANYWHERE:
                yield node.lineno, f"{owner}.{name}"
        if isinstance(node, ast.Call):
            owner, name = dotted(node.func)
            keywords = {k.arg: k.value for k in node.keywords}
            if not owner and name in NAMES:
                yield node.lineno, name
            if (owner, name) in NUMPY_READS and not is_false(keywords.get("allow_pickle")):
                yield node.lineno, f"{owner}.{name} without allow_pickle=False"
            if "shell" in keywords and not is_false(keywords["shell"]):
                yield node.lineno, "shell="
            if "weights_only" in keywords or is_true(keywords.get("allow_pickle")):
                yield node.lineno, "a pickle"


def is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


def is_true(node):
    return node is not None and not is_false(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(path):
    place = path.relative_to(ROOT).as_posix()
    found = find_dangers(ast.parse(path.read_text(encoding="utf-8")))
    left = [(line, what) for line, what in found if (place, what) not in ALLOWED]
    assert left == [], f"{place}: give it another form, or a reason in ALLOWED"


def test_every_reason_is_still_needed():
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in FILES
        for _, what in find_dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle; pickle.load(f)",
        "from pickle import loads",
        "torch.load(p)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.lib.format.read_array(f)",
        "yaml.load(t, Loader=yaml.Loader)",
        "tar.extractall(p)",
        "tar.extract(m, filter='data')",
        "subprocess.run(c, shell=True)",
        "os.system(c)",
        "eval(t)",
        "torch.distributed.broadcast_object_list(x)".replace("torch.distributed", "dist"),
        "tempfile.mktemp()",
    ],
)
def test_this_test_can_fail(code):
    assert list(find_dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["model.eval()", "yaml.safe_load(t)", "np.load(p, allow_pickle=False)"]
)
def test_and_leaves_alone_what_is_harmless(code):
    assert not list(find_dangers(ast.parse(code)))
