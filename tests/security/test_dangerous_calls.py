"""No module runs what it reads: the few calls that could are listed here, each with its reason."""

import ast
import re
from pathlib import Path

import pytest

import lmscale

ROOT = Path(lmscale.__file__).parents[1]
FILES = sorted([*(ROOT / "lmscale").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")])

# Of full names, as the file's imports give them.
BUILTINS = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill"}
DANGERS = re.compile(
    r"(?:builtins|__builtins__)\.(?:eval|exec|compile|__import__)"
    r"|(?:pickle|_pickle|cloudpickle|dill)\.(?:\w+\.)*(?:load|loads|_?Unpickler|_loads?)"
    r"|(?:marshal|joblib|shelve)\.(?:\w+\.)*(?:load|loads|open)"
    r"|torch\.(?:\w+\.)*(?:load|save|load_url|load_state_dict_from_url|load_inline|PackageImporter)"
    r"|torch\.distributed\.checkpoint\.(?:\w+\.)*load_\w+"
    r"|(?:torch\.distributed|deepspeed\.comm)\.(?:\w+\.)*\w+_object(?:_list)?"
    r"|yaml\.(?:\w+\.)*(?:load|load_all|(?:unsafe|full)_load(?:_all)?|C?(?:Unsafe|Full)?Loader)"
    r"|os\.(?:system|popen)|subprocess\.(?:getoutput|getstatusoutput)|tempfile\.mktemp"
)
# As a method of anything that is not lmscale's own: of a tar, a table, DeepSpeed's engine.
METHODS = re.compile(
    r"extract|extractall|unpack_archive|read_pickle|load_checkpoint"
    r"|(?:all_gather|gather|broadcast|scatter|send|recv)_object(?:_list)?"
)
NUMPY_READS = re.compile(r"numpy\.(?:\w+\.)*(?:load|read_array)")

IMPORT = "import pickle"
ALLOWED = {
    ("lmscale/stream/worker.py", IMPORT): "for the loads below",
    ("lmscale/stream/worker.py", "pickle.loads"): "of its rank's job, and of its own error",
    ("lmscale/stream/loader.py", IMPORT): "for the loads below",
    ("lmscale/stream/loader.py", "pickle.loads"): "of a stream that this very process has pickled",
    ("lmscale/evaluation/task_files.py", "yaml.load"): "by a SafeLoader that calls no function",
    ("launcher/preflight/node_checks.py", "shell="): "preflight.command, a line of the profile",
}


def full_names(tree):
    """What a file's imports call what: ``import torch.distributed as dist`` → dist."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node, names):
    """``np.lib.format`` → numpy.lib.format; of what a call gives, only what stands behind it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def find_dangers(tree):
    """(line, what) of every import, call or name that runs or unpickles what it is given."""
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for what in dangers_of_import(node):
                yield node.lineno, what
        elif isinstance(node, ast.Attribute):
            what = dotted(node, names)
            is_method = METHODS.fullmatch(node.attr) and not what.startswith("lmscale.")
            if is_method or DANGERS.fullmatch(what):
                yield node.lineno, what
        elif isinstance(node, ast.Call):
            for what in dangers_of_call(node, names):
                yield node.lineno, what


def dangers_of_import(node):
    """A pickle's whole module; of others what is dangerous by its name, so not under another."""
    is_from = isinstance(node, ast.ImportFrom)
    modules = [node.module or ""] if is_from else [alias.name for alias in node.names]
    yield from (f"import {name}" for name in modules if name.split(".")[0] in PICKLES)
    if is_from and not modules[0].startswith("lmscale"):
        for alias in node.names:
            what = f"{node.module}.{alias.name}"
            if DANGERS.fullmatch(what) or METHODS.fullmatch(alias.name):
                yield what


def dangers_of_call(node, names):
    what = dotted(node.func, names)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(node.func, ast.Name) and what in BUILTINS:
        yield what
    if NUMPY_READS.fullmatch(what) and not is_false(keywords.get("allow_pickle")):
        yield f"{what} without allow_pickle=False"
    if "shell" in keywords and not is_false(keywords["shell"]):
        yield "shell="
    if "weights_only" in keywords or is_true(keywords.get("allow_pickle")):
        yield "a pickle"


def is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


def is_true(node):
    return node is not None and not is_false(node)


def test_nothing_that_is_read_is_run_and_every_reason_is_still_needed():
    found = {
        (path.relative_to(ROOT).as_posix(), what): f"{path}:{line}: {what}"
        for path in FILES
        for line, what in find_dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    left = [where for danger, where in found.items() if danger not in ALLOWED]
    assert left == [], "give it another form, or a reason in ALLOWED"
    assert found.keys() == ALLOWED.keys()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import pickle; pickle.load(f)",
        "import pickle as p; p.load(f)",
        "from pickle import loads",
        "from pickle import dumps as d",
        "import _pickle; _pickle.loads(b)",
        "import cloudpickle; cloudpickle.loads(b)",
        "import dill",
        "def f():\n    from cloudpickle import loads",
        "import joblib; joblib.load(f)",
        "import marshal as m; m.loads(b)",
        "import torch; torch.load(p)",
        "import torch; torch.jit.load(p)",
        "import torch; torch.hub.load(a, b)",
        "import torch; torch.serialization.load(p)",
        "from torch import jit; jit.load(p)",
        "from torch import load",
        "from torch.serialization import load as read",
        "import torch; torch.distributed.checkpoint.load(s)",
        "import torch.distributed.checkpoint as dcp; dcp.load(s)",
        "from torch.distributed import checkpoint; checkpoint.load_state_dict(s, r)",
        "import torch; torch.distributed.broadcast_object_list(x)",
        "import torch; torch.distributed.all_gather_object(x, y)",
        "import torch.distributed as dist; dist.broadcast_object_list(x)",
        "from torch import distributed; distributed.scatter_object_list(x, y)",
        "from torch.distributed import all_gather_object",
        "from torch.distributed import all_gather_object as gather",
        "def f(group): group.send_object_list(x)",
        "def f(engine): engine.load_checkpoint(p)",
        "deepspeed.initialize(m)[0].load_checkpoint(p)",
        "import numpy as np; np.load(p)",
        "from numpy import load; load(p)",
        "from numpy import load as read; read(p)",
        "import numpy; numpy.load(p, allow_pickle=flag)",
        "import numpy as np; np.load(p, allow_pickle=True)",
        "import numpy as np; np.lib.format.read_array(f)",
        "from numpy.lib import format; format.read_array(f)",
        "import pandas as pd; pd.read_pickle(p)",
        "from pandas import read_pickle",
        "import yaml; yaml.load(t, Loader=yaml.Loader)",
        "from yaml import CUnsafeLoader",
        "tar.extractall(p)",
        "tar.extract(m, filter='data')",
        "from shutil import unpack_archive",
        "import subprocess; subprocess.run(c, shell=True)",
        "import os; os.system(c)",
        "from os import popen as run",
        "eval(t)",
        "import builtins; builtins.eval(t)",
        "import builtins as b; b.exec(t)",
        "from builtins import eval as e",
        "import tempfile; tempfile.mktemp()",
    ],
)
def test_this_test_can_fail(code):
    assert list(find_dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "import re; re.compile(t)",
        "import torch; torch.compile(m)",
        "import json; json.load(f)",
        "import yaml; yaml.safe_load(t)",
        "import numpy as np; np.load(p, allow_pickle=False)",
        "from numpy import load; load(p, allow_pickle=False)",
        "import safetensors.torch; safetensors.torch.load(b)",
        "import torch.distributed as dist; dist.broadcast(x)",
        "from lmscale.ranks.collectives import broadcast_object; broadcast_object(x)",
        "from lmscale.ranks import collectives; collectives.broadcast_object(x)",
        "from lmscale.checkpoint.load import load_checkpoint; load_checkpoint(p, m, e)",
        "module.load_state_dict(s)",
    ],
)
def test_and_leaves_alone_what_is_harmless(code):
    assert not list(find_dangers(ast.parse(code)))
