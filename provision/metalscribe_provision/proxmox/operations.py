"""Operations on a cluster's mappings and access. Each looks anew when it is its turn, so that an interrupted deploy goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.operation import operation
from pyinfra.context import host

from metalscribe_provision.passthrough.facts import Bus
from metalscribe_provision.passthrough.selection import Card, as_seen
from metalscribe_provision.proxmox.access import ROLE, environment, token_secret
from metalscribe_provision.proxmox.facts import PciMappings, StorageConfig, TerraformAccess
from metalscribe_provision.proxmox.mapping import DESCRIPTION, PciMapping, entry, merged, same

Commands = Generator[Any]

_PATH = "/cluster/mapping/pci"


@operation()
def mapped(mapping: str, cards: Sequence[Card], node: str) -> Commands:
    """This node's entries of a mapping: the cards as the kernel has them now; other nodes' entries stay."""
    ours = [entry(card, node) for card in as_seen(cards, host.get_fact(Bus))]
    yield from _changed(mapping, ours, node)


@operation()
def unmapped(mapping: str, node: str) -> Commands:
    """A mapping without this node; without any node, there is none."""
    yield from _changed(mapping, (), node)


def _changed(name: str, ours: Sequence[str], node: str) -> Commands:
    present = host.get_fact(PciMappings).by_name.get(name)
    wanted = merged(present.entries if present else (), ours, node)
    if same(present.entries if present else (), wanted):
        host.noop(f"the mapping {name} is as it should be")
    elif present is None:
        yield StringCommand(
            "pvesh",
            "create",
            _PATH,
            "--id",
            QuoteString(name),
            "--description",
            QuoteString(DESCRIPTION),
            *_maps(wanted),
        )
    elif wanted:
        # With the digest: what another node's deploy has changed meanwhile makes this one fail rather than be lost.
        yield StringCommand("pvesh", "set", QuoteString(f"{_PATH}/{name}"), *_maps(wanted), *_digest(present))
    else:
        yield StringCommand("pvesh", "delete", QuoteString(f"{_PATH}/{name}"))


def _maps(entries: Sequence[str]) -> list[Any]:
    return [part for one in entries for part in ("--map", QuoteString(one))]


def _digest(present: PciMapping) -> tuple[Any, ...]:
    return ("--digest", QuoteString(present.digest)) if present.digest else ()


@operation()
def contents(storage: str) -> Commands:
    """A storage that may hold disk images and cloud-init's files; what it holds already stays allowed."""
    found = host.get_fact(StorageConfig, storage_name=storage)
    if not found.lacking:
        host.noop(f"the storage {storage} may hold what is needed")
        return
    yield StringCommand(
        *("pvesh", "set", QuoteString(f"/storage/{storage}"), "--content"),
        QuoteString(",".join([*found.contents, *found.lacking])),
    )


@operation()
def role(user: str, token: str) -> Commands:
    """The role with what Terraform's module does, and nothing more."""
    access = host.get_fact(TerraformAccess, user=user, token=token)
    wanted = access.privileges
    present = access.roles.get(ROLE)
    if present == frozenset(wanted):
        host.noop(f"the role {ROLE} is as it should be")
        return
    verb = "add" if present is None else "modify"
    yield StringCommand("pveum", "role", verb, ROLE, "--privs", QuoteString(",".join(wanted)))


@operation()
def user(user: str, token: str) -> Commands:
    """The user, without a password, and the role for it."""
    access = host.get_fact(TerraformAccess, user=user, token=token)
    if user not in access.users:
        yield StringCommand(
            "pveum", "user", "add", QuoteString(user), "--comment", QuoteString(f"{DESCRIPTION}, for Terraform")
        )
    if (user, "/", ROLE) not in access.grants:
        yield StringCommand(
            "pveum", "acl", "modify", "/", "--users", QuoteString(user), "--roles", ROLE, "--propagate", "1"
        )


@operation()
def token(user: str, token: str, file: Path, endpoint: str) -> Commands:
    """The token, its secret in ``file`` on the machine that deploys, for its owner alone; it is printed nowhere.

    A secret is told once. Where the file is gone, a new one is made, and the old one is worth nothing from then on.
    """
    access = host.get_fact(TerraformAccess, user=user, token=token)
    if token in access.tokens and file.exists():
        host.noop(f"{file} has the token")
        return
    yield FunctionCommand(
        _make_token,
        (),
        {"user": user, "token": token, "renew": token in access.tokens, "write": _writer(file, endpoint)},
    )


def _make_token(user: str, token: str, *, renew: bool, write: Callable[[str, str], None]) -> None:
    arguments = (QuoteString(user), QuoteString(token))
    if renew:
        _run(StringCommand("pveum", "user", "token", "remove", *arguments))
    answer = _run(
        StringCommand("pveum", "user", "token", "add", *arguments, "--privsep", "0", "--output-format", "json")
    )
    try:
        write(*token_secret(answer))
    except ValueError:
        raise OperationError("pveum made a token and did not tell its secret; remove it and deploy again") from None


def _run(command: StringCommand) -> str:
    done, output = host.run_shell_command(command, print_output=False, print_input=False)
    if not done:
        raise OperationError(f"pveum: {output.stderr or 'failed without a word'}")
    return output.stdout


def _writer(file: Path, endpoint: str) -> Callable[[str, str], None]:
    def write(name: str, secret: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(environment(endpoint, name, secret))
        new.replace(file)

    return write
