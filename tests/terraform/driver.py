"""Terraform (or OpenTofu) with the real provider, as an operator runs it, against a simulated cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
HOME: Final = ROOT / ".cache" / "terraform"
BINARY: Final = HOME / "terraform"


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    output: str

    @property
    def words(self) -> str:
        """The output in one line, without the frame that errors are drawn in."""
        return " ".join(self.output.replace("│", " ").split())


@dataclass
class Terraform:
    """A copy of ``terraform/`` with a state of its own.

    Attributes:
        folder: where the copy is.
        environment: what Terraform gets besides PATH and HOME.
        within: seconds for a command.
        prefix: what every command is run by, such as one that enters a namespace.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    within: float = 150
    prefix: Sequence[str] = ()

    @classmethod
    def copied(cls, folder: Path, module: str = ".", **environment: str) -> Terraform:
        """A copy in ``folder``, its modules found."""
        shutil.copytree(ROOT / "terraform", folder, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*", ".env"))
        made = cls(folder / module, environment)
        found = made.run("get")
        assert found.status == 0, found.output
        return made

    def variables(self, **values: Any) -> None:
        """What terraform.tfvars would say."""
        (self.folder / "test.auto.tfvars.json").write_text(json.dumps(values))

    def run(self, *arguments: str) -> Done:
        """Run a command."""
        ended = subprocess.run(
            [*self.prefix, str(BINARY), *arguments],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "TF_CLI_CONFIG_FILE": str(HOME / "cli.tfrc"),
                "TF_IN_AUTOMATION": "1",
                "TF_INPUT": "0",
                "TF_CLI_ARGS": "-no-color",
                "CHECKPOINT_DISABLE": "1",
                **self.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.within,
            check=False,
        )
        return Done(ended.returncode, ended.stdout)

    def apply(self) -> Done:
        """Apply without asking."""
        return self.run("apply", "-auto-approve")

    def destroy(self) -> Done:
        """Destroy without asking."""
        return self.run("destroy", "-auto-approve")

    def changes(self) -> bool:
        """Whether a plan has any."""
        planned = self.run("plan", "-detailed-exitcode")
        assert planned.status in {0, 2}, planned.output
        return planned.status == 2

    def outputs(self) -> dict[str, Any]:
        """Values of the outputs."""
        told = json.loads(self.run("output", "-json").output)
        return {name: output["value"] for name, output in told.items()}
