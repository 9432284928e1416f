"""Listing of the data files of a folder, tar or zip, each once even if several links lead to it."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "lost+found", "$recycle.bin", "system volume information"}
)
"""Folders of operating systems and network drives, in lower case. Names that start with a dot are skipped as well:
``._*`` of macOS, ``.snapshot``, ``.ipynb_checkpoints``, ``.Trash``."""

OWN = frozenset({"pack.json", "transcode.json"})
"""A folder with one of these files is a folder of shards and is skipped: an output below the source is no source."""


def is_data(path: str) -> bool:
    """Return whether no part of a relative path, with ``/``, is hidden or belongs to a system."""
    return not any(part.startswith(".") or part.lower() in SYSTEM for part in path.split("/"))


def member_name(name: str) -> str:
    """Return the relative path of a tar or zip member: with ``/``, without a leading ``./``, ``../`` or root."""
    return re.sub(r"^(?:\.{0,2}/)+", "", name if "/" in name else name.replace("\\", "/"))


@dataclass
class Listing:
    """The result of a walk.

    Attributes:
        files: paths relative to the root, with ``/``.
        links: target of each path that is a link or lies below a linked folder; empty for a broken link.
    """

    files: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)

    def below(self, prefix: str) -> "Listing":
        """Return the listing below a folder, with paths relative to it."""
        links = {path.removeprefix(prefix): target for path, target in self.links.items() if path.startswith(prefix)}
        return Listing([path.removeprefix(prefix) for path in self.files if path.startswith(prefix)], links)

    def once(self, paths: Iterable[str], root: Path) -> set[str]:
        """Return the paths without duplicates of the same file; a file is preferred to a link to it."""
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
    """List all data files below a folder; each folder is listed once, and only links are resolved.

    A link to a folder is followed unless that folder is listed anyway or contains the link, so that cycles end.

    Args:
        links_again: also list folders within the root once under the names of links to them, which a pattern may match.
    """
    return _Walk(root, links_again).listing


class _Walk:
    def __init__(self, root: Path, links_again: bool) -> None:
        self.listing = Listing()
        self._seen: set[str] = set()
        real = os.path.realpath(root)
        links = list(self._list(real, "", ""))
        while links:  # links are sorted: the result does not depend on listing order
            files: list[tuple[str, str]] = []
            for path, prefix in sorted(links, key=lambda link: link[1]):
                files += self._follow(path, prefix, links_again)
            links = files

    def _follow(self, path: str, name: str, again: bool) -> Iterator[tuple[str, str]]:
        """Add the file that a link points to, or the files below it; yield the links found there."""
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
                list(self._list(target, f"{name}/", target, again))  # its links have been followed

    def _list(self, folder: str, prefix: str, linked: str, again: bool = False) -> Iterator[tuple[str, str]]:
        """Add the files below a real folder; yield the links found there: (path, name).

        Args:
            linked: target of the link that led to the folder, or empty.
            again: whether to list folders again that have been listed.
        """
        waiting = [(folder, prefix)]
        while waiting:
            folder, prefix = waiting.pop()
            self._seen.add(folder)
            with os.scandir(folder) as entries:  # entry types come with the listing
                visible = [entry for entry in entries if not entry.name.startswith(".")]
            if prefix and any(entry.name in OWN for entry in visible):
                continue
            for entry in visible:
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
