"""What the tests of provision/ops share: its files, and a pretend host that answers over HTTPS.

The playbooks, Ansible, TLS and the internal CA are real; what a host runs (``metalscribe``, ``metalscribe-release``) and pyinfra are
shell scripts of some lines, since a deployed host does not exist here. The real ones are the lab's business (``tests/lab``).
"""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from metalscribe_provision.edge import authority

CHECKOUT: Final = Path(__file__).resolve().parents[2]
OPS: Final = CHECKOUT / "provision" / "ops"

Answer = Callable[[str, str | None], tuple[int, str]]
"""From a path and an API key to a status and a body."""


def load(file: str) -> Any:
    """One of the Python files of ``provision/ops``, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, OPS / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def https(folder: Path, answer: Answer, *, name: str = "127.0.0.1", now: datetime | None = None) -> Iterator[int]:
    """A server on 127.0.0.1 with a certificate for ``name`` by the internal CA in ``folder``, signed at ``now``; yields its port."""
    moment = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    ca = authority.opened(folder, moment)
    pair = folder / f"pair-{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair.write_bytes(authority.pem(ca.issue(key.public_key(), [name], moment)).encode() + private)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path, self.headers.get("X-API-Key"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class calls it so)
            """Keep still."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


_RELEASE: Final = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
echo "$*" >>calls
case $1 in
status) echo '{"current": "'"$(cat current)"'"}' ;;
restart)
  if grep -q unfit credentials/metalscribe_api_key; then
    echo '{"result": "failed", "detail": "it ended", "serving": false}'
    exit 3
  fi
  cp credentials/metalscribe_api_key loaded
  echo '{"result": "done", "detail": "restarted"}'
  ;;
esac
"""

_METALSCRIBE: Final = """#!/bin/sh
echo '{"status": "ok", "checks": []}'
"""

# pyinfra @ansible/INVENTORY DEPLOY --limit HOST --json --yes
_PYINFRA: Final = """#!/bin/sh
cd "$(dirname "$0")/../$4" || exit 9
echo "$*" >>deploys
if [ -e breaks ]; then
  printf '%s\\n' '--> Starting operation: Driver | Install it ' '    [host] no space left' '--> pyinfra error: No hosts remaining!' >&2
  exit 1
fi
echo new >current
echo '{"plan": [{"name": "Release"}], "results": {"operations": [{"name": "Release", "success": ["'"$4"'"]}]}}'
"""


class Hosts:
    """Pretend hosts in folders of their own below ``folder``, and an inventory of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[str] = []
        (folder / "bin").mkdir()
        _script(folder / "bin" / "pyinfra", _PYINFRA)

    @contextmanager
    def add(self, name: str, *variables: str) -> Iterator[Path]:
        """A host of this name, serving; yields its folder."""
        folder = self.folder / name
        (folder / "credentials").mkdir(parents=True)
        _script(folder / "metalscribe", _METALSCRIBE)
        _script(folder / "metalscribe-release", _RELEASE)
        (folder / "current").write_text("old\n")
        for file in ("credentials/metalscribe_api_key", "loaded"):
            (folder / file).write_text(f"key-before-of-{name}")

        def answer(path: str, key: str | None) -> tuple[int, str]:
            if path == "/readyz":
                return (503 if (folder / "sick").exists() else 200), ""
            return (401 if key is not None and key != (folder / "loaded").read_text() else 200), ""

        with https(self.folder / "ca", answer) as port:
            self._lines.append(" ".join([name, "ansible_host=127.0.0.1", f"https_port={port}", *variables]))
            yield folder

    def play(self, playbook: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook on all of them, on this machine and without rights."""
        inventory = self.folder / "inventory.ini"
        common = ["ansible_connection=local", "ansible_become=false", f"ansible_python_interpreter={sys.executable}"]
        balancer = [
            f'{verb}_command=["sh", "-c", "echo {verb} {{{{ inventory_hostname }}}} >>{self.folder}/balancer"]'
            for verb in ("drain", "undrain")
        ]
        inventory.write_text("\n".join(["[gpu_hosts]", *self._lines, "[gpu_hosts:vars]", *common, *balancer]) + "\n")
        here = f"{self.folder}/{{{{ inventory_hostname }}}}"
        places = {
            "python_bin": f"{self.folder}/bin",
            "metalscribe": f"{here}/metalscribe",
            "metalscribe_release": f"{here}/metalscribe-release",
            "credentials": f"{here}/credentials",
            "https_authority": f"{self.folder}/ca/ca.crt",
        }
        return ansible_playbook(
            "-i", str(inventory), "-e", json.dumps(places), *arguments, str(OPS / playbook), home=self.folder
        )


def ansible_playbook(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Ansible with nothing of the user's own configuration."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "METALSCRIBE_"))
    }
    configuration = home / "ansible.cfg"
    configuration.touch()
    environment |= {
        "ANSIBLE_HOME": str(home / ".ansible"),
        "ANSIBLE_CONFIG": str(configuration),
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_PIPELINING": "true",
        "LC_ALL": "C.UTF-8",
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)


def lines(file: Path) -> Sequence[str]:
    """A file's lines; none if there is no file."""
    return file.read_text().splitlines() if file.exists() else ()


def result(stdout: Mapping[str, Any] | str, **more: Any) -> dict[str, Any]:
    """A command's registered result."""
    text = stdout if isinstance(stdout, str) else json.dumps(stdout)
    return {"rc": 0, "stdout": text, "stderr": "", **more}


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
