"""A tripwire: the functions of Pykka whose workings the kernel copies or relies on.

Each is known by a hash of its code without docstrings and annotations. When a test fails after an
upgrade, read the changed function, see whether the reason given here still holds, adapt
`pilotage/actors/kernel`, and only then put the new hash (the failure prints it) in the table.
"""

from __future__ import annotations

import ast
import hashlib
import re
from importlib.metadata import requires
from pathlib import Path

import pykka
import pytest
from pykka import _envelope, messages

PYKKA = Path(pykka.__file__).parent
KERNEL = Path(__file__).resolve().parents[3] / "pilotage" / "actors" / "kernel"

WATCHED: dict[tuple[str, str, str], tuple[str, str]] = {
    ("_actor.py", "Actor", "start"): (
        "18c19166402a",
        "LoopActor.start does this without the registry",
    ),
    ("_actor.py", "Actor", "__init__"): (
        "64b26cd40efe",
        "AdaptedActor.__init__ sets the same four attributes",
    ),
    ("_actor.py", "Actor", "_create_actor_inbox"): (
        "5c571749954c",
        "abstract: replaced by an error",
    ),
    ("_actor.py", "Actor", "_create_future"): ("eebdf355844c", "abstract: gives our future"),
    ("_actor.py", "Actor", "_start_actor_loop"): ("3f4cebeeadc5", "abstract: launches the cell"),
    ("_actor.py", "Actor", "stop"): ("1b03e46473f2", "sends _ActorStop through our ref"),
    ("_actor.py", "Actor", "_stop"): ("7d8a4b26ec7a", "replaced: the same without the registry"),
    ("_actor.py", "Actor", "_actor_loop_setup"): (
        "980c06c61df9",
        "Cell._run_start_hook has its meaning",
    ),
    ("_actor.py", "Actor", "_actor_loop_running"): ("41efd0ed04d6", "Cell.turn has its meaning"),
    ("_actor.py", "Actor", "_actor_loop_teardown"): ("9272721f0fc3", "Cell.close has its meaning"),
    ("_actor.py", "Actor", "_handle_receive"): ("1099842fb1dc", "called for every message"),
    ("_actor.py", "Actor", "_handle_failure"): (
        "c09cfae20a2b",
        "replaced: the same without the registry",
    ),
    ("_actor.py", "Actor", "actor_ref"): (
        "dcee642e68c6",
        "overridden: reads _actor_ref as it does",
    ),
    ("_ref.py", "ActorRef", "__init__"): (
        "867fada3c0de",
        "called by LoopRef: weak reference, flag, inbox",
    ),
    ("_ref.py", "ActorRef", "is_alive"): ("4de481590280", "asks Cell.is_set through actor_stopped"),
    ("_ref.py", "ActorRef", "tell"): ("4187cad59f15", "replaced: never blocks"),
    ("_ref.py", "ActorRef", "ask"): ("0a68265de4ac", "replaced: always answered"),
    ("_ref.py", "ActorRef", "stop"): ("3e90a4234904", "replaced: its future can be awaited"),
    ("_ref.py", "ActorRef", "proxy"): ("b2c025ef9324", "used as it is"),
    ("_envelope.py", "Envelope", "__init__"): ("6b1072e23576", "made for every message"),
    ("_future.py", "Future", "__init__"): (
        "2329ccfc3fea",
        "not called: its attributes are not used",
    ),
    ("_future.py", "Future", "__await__"): ("a3e0128c6507", "replaced: it blocks the loop"),
    ("_future.py", "Future", "get"): ("c14948ca9c68", "replaced"),
    ("_future.py", "Future", "set"): ("ddd69d9a8363", "replaced"),
    ("_future.py", "Future", "set_exception"): ("460630ae590e", "replaced"),
    ("_future.py", "Future", "set_get_hook"): ("0401c2dcd5cb", "replaced"),
    ("_future.py", "Future", "map"): ("6e5de56317bf", "replaced: pushes"),
    ("_future.py", "Future", "filter"): ("b0f45e7f29ab", "replaced: pushes"),
    ("_future.py", "Future", "join"): ("4fe087d26917", "replaced: pushes"),
    ("_future.py", "Future", "reduce"): ("8ecc4691cc29", "replaced: pushes"),
}


class _Bare(ast.NodeTransformer):
    """Drops what does not run: docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
        for argument in arguments:
            argument.annotation = None
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.Assign(targets=[node.target], value=node.value, lineno=0)


def code_hash(source: str, class_name: str, function: str) -> str:
    """The hash of one method, its overloads left out."""
    classes = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    body = next(c for c in classes if c.name == class_name).body
    found = [
        n
        for n in body
        if isinstance(n, ast.FunctionDef)
        and n.name == function
        and not any("overload" in ast.dump(d) for d in n.decorator_list)
    ]
    assert len(found) == 1, f"{class_name}.{function} is there {len(found)} times"
    # Text, not `ast.dump`, whose form differs from one version of Python to the next.
    return hashlib.sha256(ast.unparse(_Bare().visit(found[0])).encode()).hexdigest()[:12]


@pytest.mark.parametrize("where", WATCHED, ids=lambda where: f"{where[1]}.{where[2]}")
def test_watched_function_is_the_one_we_know(where: tuple[str, str, str]) -> None:
    file, class_name, function = where
    known, reason = WATCHED[where]
    seen = code_hash((PYKKA / file).read_text(), class_name, function)
    assert seen == known, f"{class_name}.{function} has changed; we watch it because: {reason}"


def test_the_hash_sees_code_and_nothing_else() -> None:
    old = 'class A:\n    def f(self, x: int) -> int:\n        """Doc."""\n        return x + 1\n'
    documented = "class A:\n    def f(self, x):\n        return x + 1\n"
    changed = documented.replace("+ 1", "+ 2")
    assert code_hash(old, "A", "f") == code_hash(documented, "A", "f")
    assert code_hash(old, "A", "f") != code_hash(changed, "A", "f")


def test_the_private_names_we_use_exist() -> None:
    assert issubclass(messages._ActorStop, tuple)
    envelope = _envelope.Envelope("message")
    assert (envelope.message, envelope.reply_to) == ("message", None)


def test_only_the_compat_module_uses_private_names_of_pykka() -> None:
    private = r"pykka\._|pykka import _|messages import _|messages\._"
    users = {p.name for p in KERNEL.glob("*.py") if re.search(private, p.read_text())}
    assert users == {"compat.py"}


def test_pykka_is_pinned_to_the_minor_version_that_is_watched() -> None:
    pins = [r for r in requires("pilotage") or [] if r.startswith("pykka")]
    assert len(pins) == 1
    assert "<4.6" in pins[0]
    assert ">=4.5" in pins[0]
