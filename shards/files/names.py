"""Validation of file names that are read from files: a plain name can't escape its folder.

Manifests, indexes, lists, checkpoints and results name other files. Each such name is validated here, once, when the
file that contains it is parsed; afterwards it can safely be joined to a folder.
"""

LONGEST = 255
"""Maximum length of a name in bytes on common file systems."""


def plain_name(name: str) -> str:
    """Return ``name`` if it names something directly inside a folder.

    Raises:
        ValueError: if it is empty, contains folders, ``..`` or control characters, or is too long.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"{name[:80]!r} is not a plain file name; don't use this file, it may be forged")
    if len(name.encode(errors="surrogateescape")) > LONGEST:
        raise ValueError(f"a name of {len(name)} characters, {name[:20]!r}..., is longer than file systems allow")
    return name


def inner_path(path: str) -> str:
    """Return ``path`` if it is relative and stays below the folder that it is joined to.

    All characters that are valid in file names are allowed. For a tile in an archive, the path ends at ``!``.

    Raises:
        ValueError: if it is empty, absolute, or has a part that is empty, ``.`` or ``..``.
    """
    outer = path.partition("!")[0]
    if "\0" in path or any(part in ("", ".", "..") for part in outer.split("/")):
        raise ValueError(f"{path[:80]!r} is not a path below its folder; don't use this file, it may be forged")
    return path


def tar_name(name: str) -> str:
    """Return ``name`` if it is the plain name of a ``.tar`` file; raises ValueError otherwise."""
    if not plain_name(name).endswith(".tar"):
        raise ValueError(f"{name!r} is not the name of a .tar")
    return name


def npy_name(name: str) -> str:
    """Return ``name`` if it is the plain name of a ``.npy`` file; raises ValueError otherwise."""
    if not plain_name(name).endswith(".npy"):
        raise ValueError(f"{name!r} is not the name of a .npy")
    return name
