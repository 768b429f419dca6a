"""What the deploy, the release tool and the doctor each write down by themselves, since none may import another: where things are."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from metalscribe.cli.host import deployment
from metalscribe_provision import common
from metalscribe_provision.monitoring.document import DOCUMENT
from metalscribe_provision.release import database
from metalscribe_provision.release.layout import UNIT, Layout


def test_the_doctor_looks_where_the_deploy_and_the_release_tool_put_things() -> None:
    layout = Layout()
    assert (layout.root, layout.etc, layout.backups) == (deployment.ROOT, deployment.ETC, deployment.BACKUPS)
    assert (layout.credentials, UNIT) == (deployment.CREDENTIALS, deployment.UNIT)
    assert PurePosixPath(deployment.DOCUMENT) == DOCUMENT
    assert deployment.USER == database.USER == common.USER


def test_the_deploy_and_the_release_tool_mean_the_same_places() -> None:
    layout = Layout()
    assert [PurePosixPath(path) for path in (layout.root, layout.etc, layout.state, layout.credentials)] == [
        *(common.ROOT, common.ETC, common.STATE, common.CREDENTIALS)
    ]
    assert [PurePosixPath(path) for path in (layout.releases, layout.current)] == [common.RELEASES, common.CURRENT]


def test_the_backups_unit_may_write_where_backups_are_made() -> None:
    unit = (common.CHECKOUT / "systemd" / "metalscribe-backup.service.j2").read_text(encoding="utf-8")
    (writable,) = (line.split("=", 1)[1].split() for line in unit.splitlines() if line.startswith("ReadWritePaths="))
    assert any(Layout().backups.is_relative_to(Path(path)) for path in writable if path.startswith("/"))
