"""Plugins: modules and Python files of other people, which register encoders, objectives, loggers and the like.

A config names them, ``plugins: [lab.models, heads.py]``; a package that is installed may declare its own by an entry
point of the group ``spectralforge.plugins``, and needs no mention.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module, util
from pathlib import Path

from shards.errors import ConfigError

GROUP = "spectralforge.plugins"
"""Entry point group of installed plugins."""

_loaded: dict[str, Path] = {}
"""Source file of each plugin of this process, by what `load_plugins` was given."""


def load_plugins(plugins: Sequence[str], where: str) -> None:
    """Import plugins, each once in a process.

    Args:
        plugins: names of modules, and paths of files that end in ``.py``.
        where: what names them, for messages.

    Raises:
        ConfigError: one can't be imported: one line with the plugin, the line of its file and the cause.
    """
    for plugin in plugins:
        if is_file(plugin):
            path = Path(os.path.abspath(plugin))
            _import(str(path), partial(_run_file, path), where)
            _loaded[str(path)] = path
        else:
            _import(plugin, partial(import_module, plugin), where)
            _loaded[plugin] = Path(str(sys.modules[plugin].__file__))


@cache
def load_installed_plugins() -> None:
    """Import what installed packages declare; raises ConfigError as `load_plugins`, with the name of the package."""
    from importlib.metadata import entry_points  # takes a while

    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else "an installed package"
        _import(point.value, point.load, f"{package} (pip uninstall {package} removes it)")


def loaded_plugins() -> tuple[str, ...]:
    """Return the plugins that this process has loaded, for `load_plugins` in a process that it starts."""
    return tuple(_loaded)


def plugin_files() -> dict[str, Path]:
    """Return the source file of each plugin that this process has loaded, by the plugin's name."""
    return {path.name if is_file(plugin) else plugin: path for plugin, path in _loaded.items()}


def is_file(plugin: str) -> bool:
    """Return whether a plugin is given as the path of a file rather than the name of a module."""
    return plugin.endswith(".py")


def absolute_plugin(plugin: str, folder: Path) -> str:
    """Return a plugin with the path of its file made absolute: relative to ``folder``, else to the working directory.

    The names of modules are returned as they are.
    """
    if not is_file(plugin):
        return plugin
    beside = folder / plugin
    return os.path.abspath(beside if beside.is_file() else plugin)


def _import(plugin: str, load: Callable[[], object], where: str) -> None:
    try:
        load()
    except ModuleNotFoundError as error:
        if error.name is None or not f"{plugin}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: plugin {plugin}{_line(error, plugin)}: {error}") from None
        raise ConfigError(
            f"{where}: plugin '{plugin}': no such module: install it, add its folder to PYTHONPATH, or write the path "
            "of a .py file"
        ) from None
    except Exception as error:
        told = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: plugin {plugin}{_line(error, plugin)}: {told}") from None


def _run_file(path: Path) -> None:
    """Import a file as a module of its own name, ``spectralforge_plugin_<stem>``."""
    name = f"spectralforge_plugin_{path.stem}"
    if name in sys.modules:
        first = sys.modules[name].__file__
        if first != str(path):
            raise ConfigError(f"another plugin has a file of this name, {first}: rename one of them")
        return
    if not path.is_file():
        raise ConfigError("no such file: give its path relative to the config file or to the working directory")
    spec = util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _line(error: Exception, plugin: str) -> str:
    """Return the line of the plugin's own code at which it failed, or nothing."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if frame.filename == plugin]
    return f", line {own[-1]}" if own else ""
