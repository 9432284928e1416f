"""Which files of a folder, a tar or a zip are data, and each of them once, however many links lead to it."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "lost+found", "$recycle.bin", "system volume information"}
)
"""Folders of operating systems and network drives, in lower case. What begins with a dot is none of ours either:
``._*`` of macOS, ``.snapshot``, ``.ipynb_checkpoints``, ``.Trash``."""

OWN = "pack.json"
"""A folder with this file was written by `pack`: a result below the source is no source."""


def is_data(path: str) -> bool:
    """Whether no part of a relative path, with ``/``, is hidden or belongs to a system."""
    return not any(part.startswith(".") or part.lower() in SYSTEM for part in path.split("/"))


def member_name(name: str) -> str:
    """The relative path of a member of a tar or zip: with ``/``, without ``./``, ``../`` or a root before it."""
    return re.sub(r"^(?:\.{0,2}/)+", "", name if "/" in name else name.replace("\\", "/"))


@dataclass
class Listing:
    """What a walk found.

    Attributes:
        files: paths relative to the root, with ``/``.
        links: of those that are links or lie below linked folders: the file that each leads to; empty for nowhere.
    """

    files: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)

    def below(self, prefix: str) -> "Listing":
        """What lies below a folder, with paths relative to it."""
        links = {path.removeprefix(prefix): target for path, target in self.links.items() if path.startswith(prefix)}
        return Listing([path.removeprefix(prefix) for path in self.files if path.startswith(prefix)], links)

    def once(self, paths: Iterable[str], root: Path) -> set[str]:
        """The paths without those that lead to the file of another one, of which a file itself comes before a link."""
        paths = sorted(paths, key=lambda path: (path in self.links, path))
        if not self.links:
            return set(paths)
        real_root = os.path.realpath(root)
        kept: dict[str, str] = {}
        for path in paths:
            target = self.links.get(path, f"{real_root}/{path}")
            kept.setdefault(target or path, path)
        return set(kept.values())


def list_files(root: Path, links_again: bool = False) -> Listing:
    """All files of data below a folder: one listing a folder, no look at a file that is no link.

    A link to a folder is followed unless that folder is listed anyway or holds the link: each folder is listed once,
    and circles end.

    Args:
        links_again: list folders within the root under the names of links to them, too, once: a pattern may ask for
            them.
    """
    return _Walk(root, links_again).listing


class _Walk:
    def __init__(self, root: Path, links_again: bool) -> None:
        self.listing = Listing()
        self._seen: set[str] = set()
        real = os.path.realpath(root)
        links = list(self._list(real, "", ""))
        while links:  # those of one round are sorted: what is found does not depend on the order of a listing
            found: list[tuple[str, str]] = []
            for path, prefix in sorted(links, key=lambda link: link[1]):
                found += self._follow(path, prefix, links_again)
            links = found

    def _follow(self, path: str, name: str, again: bool) -> Iterator[tuple[str, str]]:
        """Add the file that a link leads to, or the files below it; yields the links there."""
        target = os.path.realpath(path)
        if not os.path.exists(target):
            self.listing.files.append(name)
            self.listing.links[name] = ""
        elif not os.path.isdir(target):
            self.listing.files.append(name)
            self.listing.links[name] = target
        elif not f"{path}/".startswith(f"{target}/"):
            if target not in self._seen:
                yield from self._list(target, f"{name}/", target)
            elif again:
                list(self._list(target, f"{name}/", target, again))  # its links were followed already

    def _list(self, folder: str, prefix: str, linked: str, again: bool = False) -> Iterator[tuple[str, str]]:
        """Add the files of a real folder and of those below it; yields the links there: (path, name).

        Args:
            linked: the folder that a link led to, where one did.
            again: whether folders that are listed already count.
        """
        waiting = [(folder, prefix)]
        while waiting:
            folder, prefix = waiting.pop()
            self._seen.add(folder)
            with os.scandir(folder) as entries:  # entry types come with the listing
                here = [entry for entry in entries if not entry.name.startswith(".")]
            if prefix and any(entry.name == OWN for entry in here):
                continue
            for entry in here:
                if entry.name.lower() in SYSTEM:
                    continue
                if entry.is_symlink():
                    yield entry.path, prefix + entry.name
                elif entry.is_dir(follow_symlinks=False):
                    if again or entry.path not in self._seen:
                        waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file(follow_symlinks=False):
                    self.listing.files.append(prefix + entry.name)
                    if linked:
                        self.listing.links[prefix + entry.name] = entry.path
