"""The system account PostgreSQL runs under: it refuses to run as root, so root starts it as a user of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from local.errors import StackError

SYSTEM_USER = "waybill"

_ENTER_ANY_FOLDER = "+dac_read_search"


class PopenOptions(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who a program runs as. `uid` None means as ourselves."""

    uid: int | None = None
    gid: int | None = None
    through_setpriv: bool = False
    """Some folder on the way is closed to the user, so it keeps the one capability that lets it pass."""

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The arguments to start, with what comes in front of them to change the user."""
        if not self.through_setpriv:
            return list(argv)
        return [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.gid}",
            "--clear-groups",
            f"--inh-caps={_ENTER_ANY_FOLDER}",
            f"--ambient-caps={_ENTER_ANY_FOLDER}",
            *argv,
        ]

    def popen_options(self) -> PopenOptions:
        """What `subprocess.Popen` needs to change the user, where setpriv does not do it."""
        if self.uid is None or self.gid is None or self.through_setpriv:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make the account the owner of a file or folder that we just made."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


OURSELVES = Account()


def postgres_account(data: Path, must_enter: Iterable[Path]) -> Account:
    """The account for PostgreSQL's programs: ourselves, or as root the owner of `data`, or the user `waybill`.

    `must_enter` are the folders that it has to reach; where one is closed to it, `setpriv` opens the way without any
    permission being changed. Raises `StackError` if there is no such user and none can be made, or no way in.
    """
    if os.geteuid() != 0:
        return OURSELVES
    uid, gid = _owner(data) or _system_user()
    closed = next((folder for folder in must_enter if not _can_enter(folder, uid, gid)), None)
    if closed is not None and shutil.which("setpriv") is None:
        raise StackError(
            f"PostgreSQL does not run as root, and its user (id {uid}) cannot enter {closed}: "
            "install util-linux (setpriv), run this as an ordinary user, or use another folder."
        )
    return Account(uid=uid, gid=gid, through_setpriv=closed is not None)


def _owner(data: Path) -> tuple[int, int] | None:
    """The owner of existing data: ids differ between machines, and PostgreSQL wants to own its files."""
    if not data.exists():
        return None
    status = data.stat()
    return (status.st_uid, status.st_gid) if status.st_uid != 0 else None


def _system_user() -> tuple[int, int]:
    if (found := _look_up()) is not None:
        return found
    problem = "there is no useradd here"
    if (useradd := shutil.which("useradd")) is not None:
        command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = made.stderr.strip() or f"useradd ended with {made.returncode}"
    # Asked again whatever useradd said: somebody else may have made the user at the same moment.
    if (found := _look_up()) is not None:
        return found
    raise StackError(
        f"PostgreSQL does not run as root, and the system user {SYSTEM_USER!r} could not be made ({problem}): "
        "make it by hand, or run this as an ordinary user."
    )


def _look_up() -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _can_enter(folder: Path, uid: int, gid: int) -> bool:
    """Whether the plain permission bits let the user pass through `folder` and all folders above it."""
    for step in (folder, *folder.parents):
        status = step.stat()
        if status.st_uid == uid:
            bit = stat.S_IXUSR
        elif status.st_gid == gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True
