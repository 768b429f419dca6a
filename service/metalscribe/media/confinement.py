"""What a decoder may not do, and how the kernel is told. Runs inside the sandbox's processes.

Four fences, each of which holds by itself:

* ``RLIMIT_NOFILE`` 0: no new descriptor, hence no file and no socket;
* seccomp: no process, no program, no file, no socket, no limit raised, no signal to anybody else (libseccomp, which every
  Debian and Ubuntu carries; where it is missing the other fences stand, and the log says so);
* an empty network namespace, where the kernel lets an unprivileged user make one;
* bounded address space and processor time, no written file, no core dump, no new privileges.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from pathlib import Path
from types import ModuleType
from typing import Final

from metalscribe.media.messages import Confinement, Limits

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_BACKSTOP_CPU_SECONDS: Final = 5

_FORBIDDEN: Final = (
    # processes and programs
    *(
        "fork",
        "vfork",
        "clone",
        "execve",
        "execveat",
        "unshare",
        "setns",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
    ),
    # files
    *("open", "openat", "openat2", "creat", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rename"),
    *("renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "chown"),
    *("fchown", "lchown", "fchownat", "truncate", "mount", "umount2", "chroot", "pivot_root", "chdir", "fchdir"),
    *("fchmodat2", "utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr", "removexattr"),
    *("lremovexattr", "fremovexattr", "open_by_handle_at", "memfd_create", "inotify_init1", "fanotify_init"),
    # sockets
    *("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4"),
    # shared memory and queues with names
    *("shmget", "shmat", "msgget", "semget", "mq_open"),
    # limits and privileges
    *("setrlimit", "setuid", "setgid", "setresuid", "setresgid", "setgroups", "capset", "sched_setaffinity"),
    # the kernel's less trodden paths
    *(
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "keyctl",
        "add_key",
    ),
    *(
        "request_key",
        "kexec_load",
        "init_module",
        "finit_module",
        "delete_module",
        "personality",
        "pidfd_open",
        "pidfd_getfd",
    ),
    *("pidfd_send_signal", "process_madvise", "move_pages", "migrate_pages", "quotactl", "swapon", "swapoff", "reboot"),
)


def die_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_network(seccomp: ModuleType | None) -> Confinement:
    """Move into an empty network namespace: with privileges directly, without them through a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    reason = ""
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return Confinement(network_namespace=True, reason="", seccomp=seccomp is not None)
        reason = os.strerror(ctypes.get_errno())
    return Confinement(network_namespace=False, reason=reason, seccomp=seccomp is not None)


def confine(limits: Limits, seccomp: ModuleType | None) -> None:
    """Shut this process in; from here on it has what it holds and nothing else.

    Args:
        limits: what it may use.
        seccomp: :func:`load_seccomp`'s answer, asked for while files could still be opened.

    Raises:
        OSError: the kernel refuses one of the fences.
    """
    present = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    space = present + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    # SIGXCPU at the soft limit names the cause in the exit status; the hard limit catches what ignores it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + _BACKSTOP_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    os.nice(5)  # the front end answers first
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    if seccomp is not None:
        _filter_system_calls(seccomp)


def _filter_system_calls(seccomp: ModuleType) -> None:
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    refused = seccomp.ERRNO(errno.EPERM)
    for name in _FORBIDDEN:
        try:
            rules.add_rule(refused, name)
        except OSError:
            continue  # a call that this architecture or this libseccomp does not have
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")  # the C library then takes clone, which is refused
    # prlimit64 may read a limit (a null new value), not set one.
    rules.add_rule(refused, "prlimit64", seccomp.Arg(2, seccomp.NE, 0))
    for name in ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        rules.add_rule(refused, name, seccomp.Arg(0, seccomp.NE, os.getpid()))
    rules.load()


def load_seccomp() -> ModuleType | None:
    """The binding to libseccomp, None where the library is not installed."""
    try:
        import pyseccomp  # noqa: PLC0415  (it raises where the library is missing)
    except (ImportError, RuntimeError, OSError):
        return None
    module: ModuleType = pyseccomp
    return module


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
