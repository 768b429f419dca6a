"""Reading this machine's apt sources: stanzas and lines as real machines have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import sources

DEB822 = """\
# The distribution
Types: deb deb-src
# a mirror
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 bWFkZSB1cA==
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_the_suites_of_the_release_are_kept_with_their_keys() -> None:
    assert sources.deb822_for(DEB822, "bookworm") == (
        "Types: deb\nSuites: bookworm bookworm-updates\nURIs: https://mirror.example/debian\nComponents: main contrib\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        "\n"
        "Types: deb\nSuites: bookworm-security\nURIs: https://mirror.example/debian-security\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n bWFkZSB1cA==\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )


@pytest.mark.parametrize(
    "stanza",
    [
        pytest.param("Types: deb-src\nURIs: https://m.example\nSuites: bookworm\nComponents: main", id="sources only"),
        pytest.param(
            "Enabled: no\nTypes: deb\nURIs: https://m.example\nSuites: bookworm\nComponents: main", id="switched off"
        ),
        pytest.param("Types: deb\nURIs: https://m.example\nSuites: bookworm\nComponents: stable", id="somebody else's"),
        pytest.param(
            "Types: deb\nURIs: https://m.example\nSuites: trixie trixie-updates\nComponents: main", id="another release"
        ),
        pytest.param("", id="nothing"),
        pytest.param("# only a comment", id="comment"),
    ],
)
def test_other_stanzas_are_left_out(stanza: str) -> None:
    assert sources.deb822_for(stanza, "bookworm") == ""


def test_lines_of_the_release_are_kept_as_they_are() -> None:
    ours = (
        "deb http://m.example/debian bookworm main contrib\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/debian bookworm-updates main\n"
        "deb http://m.example/debian-security bookworm-security main # security\n"
    )
    others = (
        "# deb http://m.example/debian bookworm main\n"
        "deb-src http://m.example/debian bookworm main\n"
        "deb [arch=amd64] http://m.example/docker bookworm stable\n"
        "deb http://m.example/debian bookworm-backports main\n"
        "deb http://m.example/debian trixie main\n"
        "\n"
    )
    assert sources.one_line_for(others + ours + others, "bookworm") == ours


def test_every_file_that_apt_reads_is_read(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    line = "deb http://m.example/debian bookworm main\n"
    for name in ("a.list", "b.list.disabled", "c.sources.save"):
        (parts / name).write_text(line.replace("m.", f"{name[0]}."), encoding="utf-8")
    (parts / "d.sources").write_text(DEB822, encoding="utf-8")
    (tmp_path / "sources.list").write_text(line, encoding="utf-8")
    found = sources.sources_for("bookworm", tmp_path)
    assert found == [line, line.replace("m.", "a."), sources.deb822_for(DEB822, "bookworm")]


def test_a_machine_of_another_release_has_none(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://m.example/ubuntu noble main\n", encoding="utf-8")
    assert sources.sources_for("bookworm", tmp_path) == []


def test_options_for_a_proxy_and_a_frozen_mirror_are_carried_over() -> None:
    dump = (
        'Acquire "";\n'
        'Acquire::http "";\n'
        'Acquire::http::Proxy "http://proxy.example:3142";\n'
        'Acquire::https::CAInfo "/etc/ssl/company.pem";\n'
        'Acquire::Check-Valid-Until "false";\n'
        'Acquire::Languages "none";\n'
    )
    assert sources.carried_options(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3142";',
        'Acquire::https::CAInfo "/etc/ssl/company.pem";',
        'Acquire::Check-Valid-Until "false";',
    ]


def test_a_packages_index_has_each_package_with_where_it_is() -> None:
    packages = [
        ("Package: a\nDescription: first\n more\n", {"Filename": "./a.deb", "Size": "1"}),
        ("Package: b\n", {"Filename": "./b.deb", "Size": "2"}),
    ]
    assert sources.packages_index(packages) == (
        "Package: a\nDescription: first\n more\nFilename: ./a.deb\nSize: 1\n\nPackage: b\nFilename: ./b.deb\nSize: 2\n"
    )
