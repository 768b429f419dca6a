"""The machine that deploys: pyinfra and Ansible from this checkout, as an operator runs them, in the lab's network.

It has no way out either: a deploy that works here needs nothing but the checkout, its bundle and the hosts.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from lab.access import Access
from lab.host import Host
from lab.network import Namespace

CHECKOUT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent

DEPLOY_WITHIN: Final = 600.0  # seconds

_BEGINS: Final = "--> Starting operation: "


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of pyinfra came to.

    Attributes:
        status: its exit status.
        printed: all that it printed, on stdout and then on stderr.
        report: its JSON, None if it did not get that far.
    """

    status: int
    printed: str
    report: Mapping[str, Any] | None

    @property
    def planned(self) -> list[str]:
        """With ``--dry``: the operations that would change something, or might, depending on what others do."""
        assert self.report is not None, self.printed
        return [
            operation["name"]
            for operation in self.report["plan"]
            if operation["hosts_with_change"] or operation["hosts_with_conditional_change"]
        ]

    @property
    def changes(self) -> list[str]:
        """The operations that have changed something."""
        assert self.report is not None, self.printed
        return [operation["name"] for operation in self.report["results"]["operations"] if operation["success"]]

    def succeeded(self) -> Self:
        """Itself, if nothing failed.

        Raises:
            AssertionError: something did; says what was printed.
        """
        failed = ((self.report or {}).get("results") or {}).get("failed_hosts", [])
        assert (self.status, failed) == (0, []), f"the deploy failed ({self.status}, hosts {failed}):\n{self.printed}"
        return self


class Deploy:
    """A deploy under way. A context: at its end it is over, one way or the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._began = time.monotonic()
        self._changed = threading.Condition()
        self._stdout = ""
        self._lines: list[tuple[float, str]] = []
        self._silent = False
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_report, self._read_lines)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        """Whether it is under way still."""
        return self._process.poll() is None

    @property
    def seconds(self) -> float:
        """When its last line was printed, in seconds since it was started."""
        return self._lines[-1][0] if self._lines else 0.0

    @property
    def printed(self) -> str:
        """What it has printed so far for people."""
        return "".join(f"{line}\n" for _, line in self._lines)

    @property
    def begun(self) -> dict[str, float]:
        """The operations that have begun, each with the time when: seconds since the deploy was started."""
        starts = ((when, line.removeprefix(_BEGINS)) for when, line in self._lines if line.startswith(_BEGINS))
        return {name.strip(): when for when, name in starts}

    def begins(self, operation: str, within: float = DEPLOY_WITHIN) -> bool:
        """Wait until an operation begins, but not for longer than that; False if it does not, or the deploy ends before."""
        with self._changed:
            self._changed.wait_for(lambda: operation in self.begun or self._silent, within)
        return operation in self.begun

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, but not for longer than that."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.running

    def kill(self) -> None:
        """End it in the middle of what it does: the process and all that it started on this machine."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._end(DEPLOY_WITHIN)

    def outcome(self, within: float = DEPLOY_WITHIN) -> Outcome:
        """Wait for its end and read what it says.

        Raises:
            subprocess.TimeoutExpired: it takes too long.
        """
        status = self._end(within)
        try:
            report = json.loads(self._stdout)
        except json.JSONDecodeError:
            report = None
        return Outcome(status, self._stdout + self.printed, report)

    def _end(self, within: float) -> int:
        status = self._process.wait(within)
        for reader in self._readers:
            reader.join()
        return status

    def _read_report(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            self._stdout = stdout.read()

    def _read_lines(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                with self._changed:
                    self._lines.append((time.monotonic() - self._began, line.rstrip("\n")))
                    self._changed.notify_all()
        with self._changed:
            self._silent = True
            self._changed.notify_all()


class Controller:
    """Deploys from a checkout.

    Args:
        namespace: its network.
        access: how it gets into the hosts.
        folder: for what it writes: inventories, caches, its home.
        checkout: what it deploys; another one than this for another release.
    """

    def __init__(self, namespace: Namespace, access: Access, folder: Path, checkout: Path = CHECKOUT) -> None:
        self.namespace = namespace
        self.folder = folder
        self.checkout = checkout
        self._access = access
        (folder / "home").mkdir(parents=True, exist_ok=True)

    def inventory(
        self,
        hosts: Iterable[Host],
        variables: Mapping[str, object] | None = None,
        *,
        user: str = "root",
        group: str = "bare_metal",
        name: str = "inventory.ini",
    ) -> Path:
        """Write an Ansible inventory with these hosts in one group.

        Args:
            hosts: who is in it.
            variables: of all of them.
            user: whom to log in as; with sudo if it is not root.
            group: by which ``gpu_hosts`` has them (``bare_metal``, ``gpu_vms``), or ``proxmox_hosts``.
            name: of the file.
        """
        common = " ".join(shlex.quote(word) for word in self._access.options)
        every: dict[str, object] = {
            "ansible_user": user,
            "ansible_become": user != "root",
            "ansible_ssh_private_key_file": self._access.key,
            "ansible_ssh_common_args": common,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ssh_known_hosts_file": self._access.known_hosts,
            "ssh_strict_host_key_checking": "yes",
            **(variables or {}),
        }
        text = "".join(
            [
                f"[{group}]\n",
                *(f"{host.name} ansible_host={host.address}\n" for host in hosts),
                "" if group == "proxmox_hosts" else f"\n[gpu_hosts:children]\n{group}\n",
                "\n[all:vars]\n",
                *(f"{variable}={value}\n" for variable, value in every.items()),
            ]
        )
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def deploy(
        self,
        inventory: Path,
        *options: str,
        script: str = "site.py",
        environment: Mapping[str, str] | None = None,
        within: float = DEPLOY_WITHIN,
    ) -> Outcome:
        """Run one of ``provision/``'s deploys on an inventory's hosts to its end; ``--dry`` is an option."""
        with self.start(inventory, *options, script=script, environment=environment) as deploy:
            return deploy.outcome(within)

    def start(
        self, inventory: Path, *options: str, script: str = "site.py", environment: Mapping[str, str] | None = None
    ) -> Deploy:
        """The same, without waiting for it."""
        answer = () if "--dry" in options else ("--yes",)
        command = [str(BIN / "pyinfra"), *answer, "--json", *options, f"@ansible/{inventory}", f"provision/{script}"]
        process = subprocess.Popen(
            self.namespace.enter(*command),
            cwd=self.checkout,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return Deploy(process)

    def playbook(
        self, name: str, inventory: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``provision/ops/NAME`` with ansible-playbook and capture what it says; a failure is the caller's to judge."""
        return subprocess.run(
            self.namespace.enter(
                str(BIN / "ansible-playbook"), "--inventory", str(inventory), f"provision/ops/{name}", *options
            ),
            cwd=self.checkout,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEPLOY_WITHIN,
            check=False,
        )

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """An operator's environment that has nothing to say about the deploy but what the test gives it."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("METALSCRIBE_", "ANSIBLE_", "PYINFRA_"))
        }
        home = self.folder / "home"
        own = {
            "HOME": str(home),
            "ANSIBLE_HOME": str(home / ".ansible"),
            # Sockets are there, whose paths have to be short (107 bytes, unix(7)).
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._access.key.parent / "cp"),
            "LC_ALL": "C.UTF-8",
            # What is installed in the environment is this checkout; it may be another one's turn.
            "PYTHONPATH": os.pathsep.join(str(self.checkout / part) for part in ("provision", "service")),
        }
        return {**kept, **own, **(more or {})}
