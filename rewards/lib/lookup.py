"""Lookup of rewards by their key in a run file; each mistake is a ValueError of one sentence."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent.parent  # rewards/


def names() -> list[str]:
    """The rewards that lie in this folder, by file name."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))


def title(key: str) -> str:
    """The reward's name in logs: the key, the file's stem or the last part of a dotted path."""
    return Path(key).stem if key.endswith(".py") else key.rpartition(".")[2]


def load_module(key: str) -> ModuleType:
    """The module of a reward: a name in this folder, `dotted.path.Object` or `path/to/file.py`."""
    if key.endswith(".py"):
        path = Path(key).expanduser().resolve()
        if not path.is_file():
            raise ValueError(f"reward file {key} does not exist")
        return _imported(key, lambda: _load_file(path, path.stat().st_mtime_ns))
    if "." in key:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # a console script does not look there
        return _imported(key, lambda: importlib.import_module(key.rpartition(".")[0]))
    if key not in names():
        near = difflib.get_close_matches(key, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown reward {key!r}: there are {', '.join(names())}{hint}")
    return _imported(key, lambda: importlib.import_module(f"rewards.{key}"))


@lru_cache
def _load_file(path: Path, _changed: int) -> ModuleType:
    unique = f"reward_{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _imported(key: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise ValueError(f"reward {key!r} has a syntax error: {where}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if key.startswith(f"{error.name}."):
            raise ValueError(f"reward {key!r}: no module {error.name!r}") from error
        missing = f"the package {error.name!r}, which is not installed"
        raise ValueError(f"reward {key!r} needs {missing}") from error
    except Exception as error:  # whatever a user's file does when it is run
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        raise ValueError(f"reward {key!r} cannot be loaded: {reason}") from error


def find(key: str) -> Callable[..., Any]:
    """The reward class or function of this key. Raises ValueError in one sentence."""
    module = load_module(key)
    own = dict(_own(module))
    if "." in key and not key.endswith(".py"):
        wanted = key.rpartition(".")[2]
        if wanted not in own:
            near = difflib.get_close_matches(wanted, own, 1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ValueError(f"reward {key!r}: {module.__name__} has no {wanted!r}{hint}")
        return own[wanted]
    classes = [o for o in own.values() if inspect.isclass(o)]
    functions = [o for n, o in own.items() if inspect.isfunction(o) and n != "check"]
    candidates = classes or functions
    if len(candidates) != 1:
        kind = "class" if classes else "function"
        has = " and ".join(c.__name__ for c in candidates) or "none"
        raise ValueError(
            f"reward {key!r}: its file must define one public class or, without one, one public "
            f"function, but it has {has}"
            + (f": begin the name of every other {kind} with _" if candidates else "")
        )
    return candidates[0]


def _own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        local = getattr(value, "__module__", None) == module.__name__
        if not name.startswith("_") and local and (inspect.isclass(value) or callable(value)):
            yield name, value


def make(key: str, parameters: dict[str, Any]) -> Callable[..., Any]:
    """The reward, built with its parameters from the run file (without `weight`)."""
    scorer = find(key)
    if not inspect.isclass(scorer):
        if parameters:
            raise ValueError(f"reward {key!r} is a function: it takes no parameters")
        return scorer
    reward: Any = scorer(**parameters)
    return reward


def cost(key: str) -> str:
    """The sentence of the module's docstring that begins with "Cost:", without that; "" if none."""
    match = re.search(r"Cost:\s*(.+?)\.(?:\s|$)", load_module(key).__doc__ or "", re.DOTALL)
    return " ".join(match[1].split()) if match else ""
