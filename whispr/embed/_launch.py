"""Become a server child: tie its life to ours, leave root behind if told to, and exec.

Run as a script by `process.spawn` (`python -I -S _launch.py <ppid> <signal> <identity> <cwd> -- argv…`), between
fork and exec, where a `preexec_fn` would run Python in a forked copy of a threaded process. It has one
thread, which unshare(CLONE_NEWUSER) demands, and nothing is imported but the standard library.

The order matters. prctl(2) clears the parent-death signal when credentials change, so it comes last; it
fires when the *thread* that forked us ends, so the parent forks from Trio's own thread; and a parent that
died before the call would never be noticed, so its pid is compared afterwards.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CLONE_NEWUSER = 0x10000000  # linux/sched.h
INNER_USER = "nobody"
"""Whom our own files appear to belong to inside the user namespace. It has to be in the password file, for
initdb looks its user up, and this one is there on every system, containers included."""


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter_user_namespace(libc: ctypes.CDLL) -> None:
    """Map our own uid and gid to an ordinary user's in a new user namespace (user_namespaces(7))."""
    uid, gid = os.geteuid(), os.getegid()
    _checked(libc.unshare(CLONE_NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    inner = pwd.getpwnam(INNER_USER)
    Path("/proc/self/uid_map").write_text(f"{inner.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{inner.pw_gid} {gid} 1")


def take_identity(identity: str, libc: ctypes.CDLL) -> None:
    """Apply `self`, `namespace`, or `<uid>:<gid>`."""
    if identity == "namespace":
        enter_user_namespace(libc)
    elif identity != "self":
        uid, gid = identity.split(":")
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))


def main(arguments: list[str]) -> None:
    """Apply the arguments in the order given above and exec; never returns."""
    parent, death_signal, identity, cwd, _, *argv = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    take_identity(identity, libc)
    os.chdir(cwd)
    _checked(libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0), "prctl")
    if os.getppid() != int(parent):
        sys.exit("the parent died before the child was tied to it")
    os.execv(argv[0], argv)  # noqa: S606 - running a program without a shell is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
