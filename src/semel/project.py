"""The project in the current directory: finding its pipelines by name.

The directory stands first on the import path. A folder of it that another installed package hides is refused,
since the pipeline would run with that package's code.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from semel.errors import ConfigError, SemelError

if TYPE_CHECKING:
    from semel.config import Settings
    from semel.pipeline import Pipeline

FOLDERS = ("pipelines", "agents", "tables", "config")
DEFAULT_NAME = "pipeline"

_TARGET = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)(:(?P<name>[^\W\d]\w*))?")


def load(target: str, directory: Path | None = None) -> Pipeline | Any:
    """The `Pipeline` or `semel.App` that `module` (its attribute `pipeline`) or `module:name` stands for.

    `directory` (the current one) goes first on `sys.path`. ConfigError where there is none, with the next step.
    """
    where = (directory or Path.cwd()).resolve()
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ConfigError(f"{target!r} is no pipeline's name; write {_as_module(target)}, or module:name")
    module_name, name = match["module"], match["name"] or DEFAULT_NAME
    if sys.path[:1] != [str(where)]:
        sys.path.insert(0, str(where))
    importlib.invalidate_caches()
    for folder in dict.fromkeys((module_name.partition(".")[0], *FOLDERS)):
        _refuse_hidden(folder, where)
    module = _import(module_name, where)
    if not hasattr(module, name):
        names = [other for other, value in vars(module).items() if _runs(value)]
        raise ConfigError(
            f"module {module_name!r} has no attribute {name!r}; "
            + (f"write {_either(f'{module_name}:{other}' for other in names)}" if names else "define a Pipeline there")
        )
    value = getattr(module, name)
    if not _runs(value):
        raise ConfigError(f"{module_name}:{name} is {_a(value)}, not a Pipeline or an App of semel{_hint(value)}")
    return value


def settings_of(loaded: Any, settings: Settings) -> Settings:
    """`settings`, and below them what a `semel.App` was declared with: its broker, its credentials, ... ConfigError."""
    if not _is_app(loaded, "semel"):
        return settings
    loaded.use(settings)
    return loaded.semel_settings


def _import(module_name: str, where: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except SemelError:
        raise
    except ModuleNotFoundError as missing:
        if missing.name is not None and (module_name + ".").startswith(missing.name + "."):
            raise ConfigError(_not_found(module_name, where)) from missing
        raise ConfigError(
            f"module {module_name!r} imports {missing.name!r}, which is not found{_place(missing, where)}; "
            "install it, or correct the import"
        ) from missing
    except SystemExit as ended:
        raise ConfigError(
            f"module {module_name!r} ends the program when imported{_place(ended, where)}; "
            'put what starts it under `if __name__ == "__main__":`'
        ) from ended
    except SyntaxError as wrong:
        raise ConfigError(
            f"module {module_name!r} cannot be imported: {wrong.msg} ({wrong.filename}, line {wrong.lineno})"
        ) from wrong
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(f"module {module_name!r} cannot be imported: {reason}{_place(error, where)}") from error


def _not_found(module_name: str, where: Path) -> str:
    there = list(_modules(where, module_name.partition(".")[0])) or list(_modules(where, "pipelines"))
    return f"there is no module {module_name!r} in {where}; " + (
        f"there is {_either(there)}" if there else "run the command in the project's directory"
    )


def _modules(where: Path, package: str) -> Iterator[str]:
    for file in sorted((where / package).glob("*.py")):
        if file.stem != "__init__":
            yield f"{package}.{file.stem}"


def _refuse_hidden(name: str, where: Path) -> None:
    """ConfigError where `name` is in this directory, but importing it gives something else."""
    folder, file = (where / name).resolve(), (where / f"{name}.py").resolve()
    if not (file.is_file() or next(folder.glob("*.py"), None)):
        return
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # imported already, without a spec: __main__
        return
    if spec is None:
        return
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    if places and Path(places[0]).resolve() not in (folder, file):
        ours = f"{name}/" if folder.is_dir() else file.name
        way = "rename it" if not folder.is_dir() or (folder / "__init__.py").is_file() else "add an __init__.py to it"
        raise ConfigError(f"{ours} of this project is hidden by another package {name!r} ({places[0]}); {way}")


def _runs(value: object) -> bool:
    from semel.pipeline import Pipeline

    return isinstance(value, Pipeline) or _is_app(value, "semel")


def _is_app(value: object, package: str) -> bool:
    # By name, since importing Faust takes longer than all the rest and a Pipeline's worker does that later.
    return any(c.__name__ == "App" and c.__module__.partition(".")[0] == package for c in type(value).__mro__)


def _hint(value: object) -> str:
    return "; import App from semel instead of faust" if _is_app(value, "faust") else ""


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)


def _as_module(target: str) -> str:
    """`pipelines/payments.py` -> `pipelines.payments`, where that is what was meant."""
    guess = target.removesuffix(".py").strip("./").replace("/", ".")
    return guess if _TARGET.fullmatch(guess) else "a dotted module like pipelines.payments"


def _place(error: BaseException, where: Path) -> str:
    """The last line of the project that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = Path(frame.filename)
        if where in file.parents and not any(part.startswith(".") for part in file.relative_to(where).parts):
            return f" ({file.relative_to(where)}, line {frame.lineno})"
    return ""
