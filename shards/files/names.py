"""Names that come out of files: a plain name stays in its folder, whoever wrote the file.

Manifests, indexes, lists, checkpoints and results name other files. Each such name is checked here, once, where
the file that holds it is parsed; what passed may be joined to a folder without another thought.
"""

LONGEST = 255
"""Bytes of a name that common file systems take."""


def plain_name(name: str) -> str:
    """``name``, if it names something directly inside a folder.

    Raises:
        ValueError: it is empty, has folders in it, leads upwards, has control characters, or is too long.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"{name[:80]!r} is no plain file name; don't use this file, it may be forged")
    if len(name.encode(errors="surrogateescape")) > LONGEST:
        raise ValueError(f"a name of {len(name)} characters, {name[:20]!r}..., is longer than file systems allow")
    return name


def inner_path(path: str) -> str:
    """``path``, if it is relative and stays below the folder that it is joined to.

    A name may hold any character that a file of a user may have; of a tile in an archive, ``!`` ends the path.

    Raises:
        ValueError: it is empty, absolute, or has a part that is empty, ``.`` or ``..``.
    """
    outer = path.partition("!")[0]
    if "\0" in path or any(part in ("", ".", "..") for part in outer.split("/")):
        raise ValueError(f"{path[:80]!r} is no path below its folder; don't use this file, it may be forged")
    return path


def tar_name(name: str) -> str:
    """``name``, if it is the plain name of a tar; raises ValueError else."""
    if not plain_name(name).endswith(".tar"):
        raise ValueError(f"{name!r} is not the name of a .tar")
    return name


def npy_name(name: str) -> str:
    """``name``, if it is the plain name of an array's file; raises ValueError else."""
    if not plain_name(name).endswith(".npy"):
        raise ValueError(f"{name!r} is not the name of a .npy")
    return name
