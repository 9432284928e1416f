"""Errors of file systems, explained in part of a line: what happened and what to do."""

import errno
import os
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota, or ask for more",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "mount it writable again (after a disk error the kernel mounts it read-only: see dmesg)",
    errno.EIO: "check the disk or its server (dmesg)",
    errno.ESTALE: "mount its file system again",
    errno.ENOENT: "put its folder back, or mount its file system again",
    errno.ENOTDIR: "put its folder back",
    errno.EACCES: "ask its owner for access",
    errno.EPERM: "ask its owner for access",
}
NO_INODES = "remove files: the file system has no inodes left (df -i)"
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
"""Errors of a full disk or an unavailable file system, which no other key, path or option avoids."""


def error_text(error: OSError) -> str:
    """Return the system's words on an error, without number and file name."""
    return error.strerror or str(error)


def remedy(error: OSError, path: Path | str) -> str:
    """Return what to do about an error, as an imperative.

    Args:
        path: what couldn't be read or written; it doesn't have to exist.
    """
    if error.errno == errno.ENOSPC and _is_out_of_inodes(Path(path)):
        return NO_INODES
    return _REMEDIES.get(error.errno or 0, "check the file system")


def _is_out_of_inodes(path: Path) -> bool:
    """Return whether a file system can't have more files; some report no numbers of files at all."""
    for folder in (path, *path.absolute().parents):
        try:
            status = os.statvfs(folder)
        except OSError:
            continue
        return status.f_files > 0 and status.f_favail == 0
    return False
