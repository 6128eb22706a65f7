"""What SECURITY.md promises of the package as a whole; of files from strangers test_hostile_files.py has more."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mithril_opt"
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LIBRARY = [source for source in SOURCES if not source.startswith("demo/")]
FORBIDDEN = {
    *("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("socket", "ssl", "urllib", "http", "requests", "ftplib", "smtplib", "asyncio"),
    *("subprocess", "multiprocessing", "ctypes", "runpy", "code"),
}
CALLS = {
    "eval",
    "exec",
    "__import__",
    "open",
    "input",
    "system",
    "popen",
    "load",
    "loads",
    "save",
    "savez",
    "tofile",
}


def modules(tree):
    """The packages that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def calls(tree):
    """The names of the functions that a file calls."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {getattr(function, "id", getattr(function, "attr", "")) for function in functions}


@pytest.mark.parametrize("source", SOURCES)
def test_no_network_no_process_no_pickle(source):
    assert set(modules(ast.parse((PACKAGE / source).read_text()))) & FORBIDDEN == set()


@pytest.mark.parametrize("source", LIBRARY)
def test_no_file_and_no_text_as_code(source):
    tree = ast.parse((PACKAGE / source).read_text())
    assert calls(tree) & CALLS == set()
    assert "allow_pickle" not in {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}


def test_what_the_checks_above_would_find():
    tree = ast.parse("import pickle\nfrom urllib.request import urlopen\nnp.load(f)\nopen(f)\neval(t)")
    assert set(modules(tree)) & FORBIDDEN == {"pickle", "urllib"}
    assert calls(tree) & CALLS == {"load", "open", "eval"}


WATCHED = """
import sys
import jax, jax.numpy as jnp, numpy as np
import mithril_opt as mo
mo.AdamW().init({"w": jnp.ones(2)})
events = []
names = ("socket.connect", "socket.bind", "subprocess.Popen", "os.system", "pickle.find_class", "exec", "open", "os.remove")
def hook(event, args):
    if event in names and not (event == "open" and str(args[0]).startswith((sys.prefix, sys.base_prefix))):
        events.append((event, str(args[0])[:100]))
optimizer, params = mo.EMA(mo.Adam()), {"w": jnp.ones(2)}
state = optimizer.init(params)

def there_and_back():
    mo.from_state_dict(state, {name: np.asarray(value) for name, value in mo.to_state_dict(state).items()})

there_and_back()  # which imports parts of JAX
sys.addaudithook(hook)
there_and_back()
print(events)
"""


def test_a_state_is_saved_and_restored_without_a_file_or_a_socket():
    """Python itself is asked, through its audit hook, in a process of its own, as a hook cannot be taken away."""
    ran = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert ran.stdout.strip() == "[]", ran.stdout
