"""Plugins: third-party modules and Python files that register encoders, objectives, loggers and the like.

A config lists them: ``plugins: [lab.models, heads.py]``. An installed package can declare plugins as entry points of
the group ``spectralforge.plugins``; these need not be listed.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

from shards.errors import ConfigError

GROUP = "spectralforge.plugins"
"""Entry point group of installed plugins."""

PREFIX = "spectralforge_plugin_"
"""Of the names of modules that are files."""

_loaded: dict[str, Path] = {}
"""Source file of each plugin loaded in this process, by the string that was passed to `load_plugins`."""


def load_plugins(plugins: Sequence[str], where: str) -> None:
    """Import plugins, each once per process.

    Args:
        plugins: module names, and paths of files that end in ``.py``.
        where: config key or option that lists them, for messages.

    Raises:
        ConfigError: if a plugin can't be imported; the message names the plugin, the line of its file and the cause.
    """
    for plugin in plugins:
        if is_file(plugin):
            path = Path(os.path.abspath(plugin))
            _import(str(path), partial(_run_file, path), where)
            _loaded[str(path)] = path
        else:
            _import(plugin, partial(import_module, plugin), where)
            _loaded[plugin] = Path(str(sys.modules[plugin].__file__))


def load_file(path: str, where: str) -> ModuleType:
    """Import a Python file without registering it as a plugin; see `load_plugins`."""
    absolute = Path(os.path.abspath(path))
    _import(str(absolute), partial(_run_file, absolute), where)
    return sys.modules[f"{PREFIX}{absolute.stem}"]


@cache
def load_installed_plugins() -> None:
    """Import the plugins of installed packages; raises ConfigError like `load_plugins`, naming the package."""
    from importlib.metadata import entry_points  # slow to import

    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else "an installed package"
        _import(point.value, point.load, f"{package} (pip uninstall {package} removes it)")


def loaded_plugins() -> tuple[str, ...]:
    """Return the plugins that this process has loaded, as arguments for `load_plugins` in a child process."""
    return tuple(_loaded)


def plugin_files() -> dict[str, Path]:
    """Return the source file of each plugin that this process has loaded, by the plugin's name."""
    return {path.name if is_file(plugin) else plugin: path for plugin, path in _loaded.items()}


def is_file(plugin: str) -> bool:
    """Return whether a plugin is a file path rather than a module name."""
    return plugin.endswith(".py")


def absolute_plugin(plugin: str, folder: Path) -> str:
    """Make the file path of a plugin absolute, relative to ``folder`` or else to the working directory.

    Module names are returned unchanged.
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
        message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: plugin {plugin}{_line(error, plugin)}: {message}") from None


def _run_file(path: Path) -> None:
    """Import a file as a module named ``spectralforge_plugin_<stem>``."""
    name = f"{PREFIX}{path.stem}"
    if name in sys.modules:
        first = sys.modules[name].__file__
        if first != str(path):
            raise ConfigError(f"another plugin has a file with this name, {first}: rename one of them")
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
    """Return the line of the plugin's own code that failed, as ", line N", or an empty string."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own_lines = [frame.lineno for frame in frames if frame.filename == plugin]
    return f", line {own_lines[-1]}" if own_lines else ""
