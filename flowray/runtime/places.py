"""Where the sockets of a runtime's processes are: in a directory of this machine that only their user may enter."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from flowray.errors import ConfigError

COORDINATOR = "coordinator"  # its name in the mesh


def socket_directory(runtime: str, journal: str) -> Path:
    """The directory for one runtime on this machine; made if there is none. Short, for a socket's path is limited.

    Raises:
        ConfigError: somebody else owns what stands in its place.
    """
    base = Path(os.environ.get("FLOWRAY_SOCKETS") or f"/tmp/flowray-{os.getuid()}")
    digest = hashlib.sha256(f"{runtime}\0{journal}".encode()).hexdigest()[:12]
    for directory in (base, base / digest):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ConfigError("FLOWRAY_SOCKETS", f"{directory} belongs to somebody else", "name another directory")
        if found.st_mode & 0o077:
            directory.chmod(0o700)
    return base / digest


def shared_token(journal: Path) -> str:
    """The secret that the processes of one runtime share; made once, and kept beside its journal."""
    path = journal / "mesh_token"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    token = f"frk_{secrets.token_urlsafe(32)}"
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    return token
