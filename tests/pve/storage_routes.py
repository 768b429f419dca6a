"""Storages: what lies in them, and what is fetched into them."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import httpx
from fastapi import Request

from .errors import PveError, invalid
from .routing import Table
from .state import Task, Volume

if TYPE_CHECKING:
    from .api import Simulator

_IMPORT: Final = re.compile(r"[^/\s]+\.(qcow2|raw|vmdk|ova|img)")


class StorageRoutes:
    """What lies in storages, and what is fetched into them."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._cluster = simulator.cluster

    def table(self) -> Table:
        """Method, path, handler."""
        return (
            ("GET", "/nodes/{node}/query-url-metadata", self.metadata),
            ("POST", "/nodes/{node}/storage/{storage}/download-url", self.download),
            ("GET", "/nodes/{node}/storage/{storage}/content", self.content),
            ("GET", "/nodes/{node}/storage/{storage}/content/{name:path}", self.volume),
            ("DELETE", "/nodes/{node}/storage/{storage}/content/{name:path}", self.drop_volume),
        )

    async def metadata(self, request: Request, node: str) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        for privilege in ("Sys.Audit", "Sys.Modify"):
            who.need("/", privilege)
        self._simulator.node(node)
        try:
            async with httpx.AsyncClient(trust_env=False, verify=asked.get("verify-certificates") != "0") as client:
                answer = await client.head(asked["url"], follow_redirects=True)
        except httpx.HTTPError as error:
            raise PveError(500, f"invalid server response: '500 {error}'") from error
        if answer.is_error:
            raise PveError(500, f"invalid server response: '{answer.status_code} {answer.reason_phrase}'")
        return {
            "data": {
                "filename": asked["url"].rpartition("/")[2],
                "size": int(answer.headers.get("content-length", 0)),
                "mimetype": answer.headers.get("content-type", "application/octet-stream"),
            }
        }

    async def download(self, request: Request, node: str, storage: str) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        who.need(f"/storage/{storage}", "Datastore.AllocateTemplate")
        for privilege in ("Sys.Audit", "Sys.Modify"):
            who.need("/", privilege)
        volumes = self._simulator.storage(node, storage)
        content, name = asked["content"], asked["filename"]
        if content not in self._cluster.nodes[node].storages[storage].content:
            raise PveError(500, f"storage '{storage}' is not configured for content-type '{content}'")
        if content == "import" and _IMPORT.fullmatch(name) is None:
            raise invalid(filename="wrong file extension")
        volume = f"{storage}:{content}/{name}"
        if volume in volumes:
            raise PveError(500, f"refusing to override existing file '{name}'")
        algorithm, wanted = asked.get("checksum-algorithm"), asked.get("checksum")

        async def fetch(task: Task) -> None:
            digest, size = hashlib.new(algorithm or "sha256"), 0
            task.log.append(f"downloading {asked['url']} to {volume}")
            try:
                async with (
                    httpx.AsyncClient(trust_env=False, verify=asked.get("verify-certificates") != "0") as client,
                    client.stream("GET", asked["url"], follow_redirects=True) as answer,
                ):
                    if answer.is_error:
                        raise PveError(500, f"download failed: {answer.status_code} {answer.reason_phrase}")
                    with self._simulator.file_of(volume).open("wb") as file:
                        async for block in answer.aiter_bytes():
                            digest.update(block)
                            size += len(block)
                            file.write(block)
            except httpx.HTTPError as error:
                raise PveError(500, f"download failed: {error}") from error
            if wanted and digest.hexdigest() != wanted.lower():
                task.log.append(f"checksum mismatch: got '{digest.hexdigest()}' != expect '{wanted}'")
                raise PveError(500, f"checksum mismatch: got '{digest.hexdigest()}' != expect '{wanted}'")
            volumes[volume] = Volume(content=content, size=size, format=name.rpartition(".")[2])

        return {"data": self._simulator.tasks.start(node, "download", name, who.name, fetch)}

    async def content(self, request: Request, node: str, storage: str) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        who.need(f"/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace")
        return {
            "data": [
                {"volid": name, "content": volume.content, "format": volume.format, "size": volume.size}
                | ({"vmid": volume.vmid} if volume.vmid is not None else {})
                for name, volume in self._simulator.storage(node, storage).items()
                if asked.get("content") in {None, volume.content}
            ]
        }

    async def volume(self, request: Request, node: str, storage: str, name: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace")
        found = self._simulator.storage(node, storage).get(_volume_id(storage, name))
        if found is None:
            raise PveError(500, f"volume '{name}' does not exist")
        return {"data": {"path": f"/dev/pve/{name}", "format": found.format, "size": found.size, "used": found.size}}

    async def drop_volume(self, request: Request, node: str, storage: str, name: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/storage/{storage}", "Datastore.Allocate")
        volumes, volume = self._simulator.storage(node, storage), _volume_id(storage, name)
        if volume not in volumes:
            raise PveError(500, f"volume '{volume}' does not exist")

        async def remove(_: Task) -> None:
            volumes.pop(volume, None)

        return {"data": self._simulator.tasks.start(node, "imgdel", "", who.name, remove)}


def _volume_id(storage: str, name: str) -> str:
    return name if name.startswith(f"{storage}:") else f"{storage}:{name}"
