"""Takes from the process that looks into files whatever it does not need, before it reads anything of them.

Bounds of memory, time and files are POSIX's (setrlimit(2)). Where the kernel has Landlock (landlock(7), from Linux
5.13 on) the process also sees nothing of the file system but its own folder and the libraries, and from Linux 6.7
on reaches nobody over TCP. So a file that takes it over finds neither keys nor other people's files.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import whispr
from whispr.services.media.findings import Bounds

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
# The numbers of these calls are the same on every architecture (syscalls(2)).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _READ_FILE
"""What a rule about a file that is no folder may name, of what is read."""
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights of the file system each version knows; later ones know as many as the last."""
_TCP_RIGHTS, _TCP_SINCE = 0b11, 4

_READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


def confine(folder: Path, bounds: Bounds) -> None:
    """Confine this process for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The soft limit's signal can be told from the machine's own killing of a process, the hard one's cannot.
    resource.setrlimit(resource.RLIMIT_CPU, (bounds.cpu_s, bounds.cpu_s + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (bounds.file_bytes, bounds.file_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # A write past the bound is then an error, which says what happened, rather than the end of us.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fence(folder, libc)


def fence(folder: Path, libc: ctypes.CDLL) -> bool:
    """Leave this process the folder, libraries to read, and nothing else; False where the kernel cannot."""
    version = libc.syscall(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        return False
    every = (1 << _FS_RIGHTS.get(version, max(_FS_RIGHTS.values()))) - 1
    rules = _Ruleset(every, _TCP_RIGHTS)
    size = ctypes.sizeof(_Ruleset) if version >= _TCP_SINCE else ctypes.sizeof(ctypes.c_uint64)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return False
    _allow(libc, ruleset, folder, every)
    own = (sys.prefix, sys.base_prefix, *sys.path, str(Path(whispr.__file__).parent))
    for path in {os.path.realpath(path) for path in (*_READABLE, *own) if path and os.path.exists(path)}:
        _allow(libc, ruleset, Path(path), _READ)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return bool(done == 0)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _Beneath(rights if path.is_dir() else rights & _OF_FILES, descriptor)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
