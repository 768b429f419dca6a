"""Mappings and access of a Proxmox cluster: what is read, and what is made of it.

pvesh's and pveum's answers are composed after the API's published schema; no cluster can be here.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from metalscribe_provision.passthrough.pci import PciDevice
from metalscribe_provision.passthrough.selection import Card
from metalscribe_provision.proxmox.access import PRIVILEGES, environment, parse_access, token_secret
from metalscribe_provision.proxmox.mapping import entry, merged, parse_mappings, same

GPU = PciDevice("0000:03:00.0", 0x10DE, 0x13F1, 0x030000, subsystem_vendor=0x10DE, subsystem_device=0x1153, group=52)
CARD = Card((GPU, replace(GPU, address="0000:03:00.1", device=0x0FBB, class_code=0x040300)))
OURS = "id=10de:13f1,iommugroup=52,node=pve1,path=0000:03:00,subsystem-id=10de:1153"
OTHERS = "id=10de:2684,iommugroup=14,node=pve2,path=0000:01:00,subsystem-id=1458:40bf,description=left slot"


def test_an_entry_names_the_whole_card() -> None:
    assert entry(CARD, "pve1") == OURS
    bare = Card((replace(GPU, subsystem_vendor=0, subsystem_device=0),))
    assert entry(bare, "pve1") == "id=10de:13f1,iommugroup=52,node=pve1,path=0000:03:00"


def test_other_nodes_keep_their_entries() -> None:
    moved = OURS.replace("iommugroup=52", "iommugroup=7")
    assert merged((moved, OTHERS), [OURS], "pve1") == (OTHERS, OURS)
    assert merged((moved, OTHERS), [], "pve1") == (OTHERS,)
    assert merged((), [OURS], "pve1") == (OURS,)


def test_the_order_of_properties_is_no_change() -> None:
    shuffled = "node=pve1,path=0000:03:00,id=10de:13f1,subsystem-id=10de:1153,iommugroup=52,description=mine"
    assert same([shuffled, OTHERS], [OTHERS, OURS])
    assert not same([OURS], [OURS.replace("52", "53")])
    assert not same([OURS], [OURS, OTHERS])


def test_mappings_as_the_cluster_tells_them() -> None:
    told = json.dumps([{"id": "gpu", "map": [OURS, OTHERS], "digest": "abc", "type": "pci"}, {"id": "nic", "map": []}])
    found = parse_mappings(told)
    assert found.by_name["gpu"].entries == (OURS, OTHERS)
    assert found.by_name["gpu"].digest == "abc"
    assert found.by_name["nic"].entries == ()
    for wrong in ("", "{}", '[{"map": []}]', "[1]"):
        with pytest.raises(ValueError, match=r"mappings|JSON|Expecting"):
            parse_mappings(wrong)


def roles(*known: str) -> str:
    return json.dumps([{"roleid": "Administrator", "privs": ",".join(known)}, {"roleid": "NoAccess", "privs": ""}])


ACL = json.dumps(
    [
        {"path": "/", "roleid": "MetalscribeTerraform", "type": "user", "ugid": "metalscribe@pve", "propagate": 1},
        {"path": "/vms", "roleid": "PVEAuditor", "type": "group", "ugid": "staff", "propagate": 1},
        {"path": "/", "roleid": "PVEAuditor", "type": "user", "ugid": "eve@pve", "propagate": 0},
    ]
)
USERS = json.dumps([{"userid": "root@pam"}, {"userid": "metalscribe@pve"}])


def test_access_as_the_cluster_tells_it() -> None:
    access = parse_access(roles(*PRIVILEGES), USERS, ACL, json.dumps([{"tokenid": "terraform", "privsep": 0}]))
    assert access.users == {"root@pam", "metalscribe@pve"}
    assert access.grants == {("metalscribe@pve", "/", "MetalscribeTerraform")}
    assert access.tokens == {"terraform"}
    assert access.roles["NoAccess"] == frozenset()
    assert access.privileges == PRIVILEGES


def test_privileges_by_the_names_of_the_version() -> None:
    old = (*(name for name in PRIVILEGES if name != "VM.GuestAgent.Audit"), "VM.Monitor", "VM.Migrate")
    access = parse_access(roles(*old), USERS, ACL, "[]")
    assert "VM.Monitor" in access.privileges
    assert "VM.GuestAgent.Audit" not in access.privileges
    assert "VM.Migrate" not in access.privileges  # what the module does not do, it may not do


def test_the_role_is_a_small_one() -> None:
    assert not [
        name
        for name in PRIVILEGES
        if name.startswith(("Permissions.", "User.", "Realm.", "Group.", "Sys.Power", "Sys.Console"))
    ]


def test_a_token_is_told_once() -> None:
    name, secret = token_secret(
        '{"full-tokenid": "metalscribe@pve!terraform", "value": "0-1-2", "info": {"privsep": "0"}}'
    )
    text = environment("https://pve1:8006/", name, secret)
    assert "export PROXMOX_VE_API_TOKEN='metalscribe@pve!terraform=0-1-2'\n" in text
    assert "export PROXMOX_VE_ENDPOINT='https://pve1:8006/'\n" in text
    with pytest.raises(ValueError, match="no token"):
        token_secret("{}")
