"""``pvesh`` and ``pveum`` over a simulated cluster's file: what the host deploy asks and changes as root@pam.

    python -m pve.cli FILE pvesh get /cluster/mapping/pci --output-format json

Only the commands that the deploy uses; anything else is an error, as an unknown path is with the real ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .state import Cluster, Grant, Mapping, Token, User

_MAPPINGS: Final = "/cluster/mapping/pci"
_NODE: Final = "pve1"

_Options = dict[str, list[str]]


class Refused(Exception):
    """What the tool says before it exits with an error."""


def _options(words: Sequence[str]) -> tuple[list[str], _Options]:
    """Positional words, and options with their values in order."""
    plain: list[str] = []
    options: _Options = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            if not rest:
                raise Refused(f"400 option {word} needs a value")
            options.setdefault(word[2:], []).append(rest.pop(0))
        else:
            plain.append(word)
    return plain, options


def _digest(cluster: Cluster) -> str:
    text = json.dumps({name: mapping.entries for name, mapping in sorted(cluster.mappings.items())})
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _pvesh(cluster: Cluster, verb: str, path: str, options: _Options) -> Any:
    if path == _MAPPINGS and verb == "get":
        return [
            {"id": name, "map": mapping.entries, "description": mapping.description, "digest": _digest(cluster)}
            for name, mapping in cluster.mappings.items()
        ]
    if path == _MAPPINGS and verb == "create":
        [name] = options["id"]
        if name in cluster.mappings:
            raise Refused(f"pci ID '{name}' already defined")
        cluster.mappings[name] = Mapping(entries=options["map"], description=options.get("description", [""])[0])
        return None
    if path.startswith(f"{_MAPPINGS}/"):
        return _one_mapping(cluster, verb, path.removeprefix(f"{_MAPPINGS}/"), options)
    if path.startswith("/storage/"):
        return _storage(cluster, verb, path.removeprefix("/storage/"), options)
    raise Refused(f"No '{verb}' handler defined for '{path}'")


def _one_mapping(cluster: Cluster, verb: str, name: str, options: _Options) -> None:
    if name not in cluster.mappings:
        raise Refused(f"mapping '{name}' does not exist")
    if options.get("digest", [_digest(cluster)]) != [_digest(cluster)]:
        raise Refused("detected modified configuration - file changed by other user? Try again.")
    if verb == "set":
        cluster.mappings[name].entries = options["map"]
    elif verb == "delete":
        del cluster.mappings[name]
    else:
        raise Refused(f"No '{verb}' handler defined for '{_MAPPINGS}/{name}'")


def _storage(cluster: Cluster, verb: str, name: str, options: _Options) -> Any:
    storage = cluster.nodes[_NODE].storages.get(name)
    if storage is None:
        raise Refused(f"storage '{name}' does not exist")
    if verb == "set":
        storage.content = set(options["content"][0].split(","))
        return None
    told: dict[str, Any] = {"storage": name, "content": ",".join(sorted(storage.content)), "type": "lvmthin"}
    return told if storage.path is None else told | {"type": "dir", "path": storage.path}


def _pveum(cluster: Cluster, words: Sequence[str], options: _Options) -> Any:
    known: dict[tuple[str, ...], Callable[..., Any]] = {
        ("role", "list"): lambda: [
            {"roleid": name, "privs": ",".join(sorted(privileges))} for name, privileges in cluster.roles.items()
        ],
        ("role", "add"): lambda name: cluster.roles.update({name: set(options["privs"][0].split(","))}),
        ("role", "modify"): lambda name: cluster.roles.update({name: set(options["privs"][0].split(","))}),
        ("user", "list"): lambda: [{"userid": name} for name in cluster.users],
        ("user", "add"): lambda name: cluster.users.update({name: User()}),
        ("acl", "list"): lambda: [
            {"path": one.path, "ugid": one.user, "roleid": one.role, "type": "user", "propagate": int(one.propagate)}
            for one in cluster.grants
        ],
        ("acl", "modify"): lambda path: cluster.grants.append(
            Grant(
                path=path,
                user=options["users"][0],
                role=options["roles"][0],
                propagate=options.get("propagate", ["1"]) == ["1"],
            )
        ),
    }
    tokens: dict[str, Callable[..., Any]] = {
        "list": lambda user: [
            {"tokenid": name, "privsep": int(token.privsep)} for name, token in _user(cluster, user).tokens.items()
        ],
        "add": lambda user, name: _new_token(cluster, user, name, privsep=options.get("privsep", ["1"]) == ["1"]),
        "remove": lambda user, name: _drop_token(cluster, user, name),
    }
    if words[:2] == ["user", "token"] and words[2] in tokens:
        return tokens[words[2]](*words[3:])
    if tuple(words[:2]) in known:
        return known[words[0], words[1]](*words[2:])
    raise Refused(f"unknown command 'pveum {' '.join(words)}'")


def _user(cluster: Cluster, name: str) -> User:
    if name not in cluster.users:
        raise Refused(f"no such user ('{name}')")
    return cluster.users[name]


def _new_token(cluster: Cluster, user: str, name: str, *, privsep: bool) -> dict[str, Any]:
    tokens = _user(cluster, user).tokens
    if name in tokens:
        raise Refused("Token already exists.")
    tokens[name] = Token(secret=str(uuid.uuid4()), privsep=privsep)
    return {"full-tokenid": f"{user}!{name}", "info": {"privsep": str(int(privsep))}, "value": tokens[name].secret}


def _drop_token(cluster: Cluster, user: str, name: str) -> None:
    if _user(cluster, user).tokens.pop(name, None) is None:
        raise Refused(f"no such token '{name}' for user '{user}'")


def command(cluster: Cluster, tool: str, arguments: Sequence[str]) -> str:
    """Run one command on a cluster; returns what it prints.

    Raises:
        Refused: it exits with an error.
    """
    words, options = _options(arguments)
    options.pop("output-format", None)
    options.pop("comment", None)
    answer = _pvesh(cluster, words[0], words[1], options) if tool == "pvesh" else _pveum(cluster, words, options)
    return "" if answer is None else json.dumps(answer) + "\n"


def main(file: Path, tool: str, *arguments: str) -> int:
    """Run one command on the cluster in a file; returns its exit status."""
    cluster = Cluster.load(file)
    try:
        printed = command(cluster, tool, arguments)
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        return 255
    cluster.save(file)
    sys.stdout.write(printed)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
