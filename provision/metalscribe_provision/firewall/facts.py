"""What a host says about its packet filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyinfra.api.facts import FactBase

from metalscribe_provision.common import ETC

RULESET: Final = ETC / "firewall.nft"
UNIT: Final = "metalscribe-firewall.service"
UNIT_FILE: Final = f"/etc/systemd/system/{UNIT}"
DROP_IN: Final = "/etc/systemd/system/nftables.service.d/metalscribe.conf"

_LOADED: Final = "nft --stateless list table inet metalscribe 2>/dev/null"


class SshConnection(FactBase[str]):
    """``SSH_CONNECTION`` of the deploy's own connection; empty without one, or behind sudo, which forgets it."""

    def command(self) -> str:
        """As sshd has set it."""
        return 'printf "%s\\n" "$SSH_CONNECTION"'

    @staticmethod
    def default() -> str:
        """Not over SSH."""
        return ""


class OtherFirewalls(FactBase[list[str]]):
    """Firewalls that rule the host already: ``ufw``, ``firewalld``."""

    def command(self) -> str:
        """ufw's unit is active even where ufw is switched off; its own configuration tells."""
        return (
            "if command -v ufw >/dev/null && grep -qi '^ENABLED=yes' /etc/ufw/ufw.conf 2>/dev/null; then echo ufw; fi; "
            "if systemctl is-active --quiet firewalld.service 2>/dev/null; then echo firewalld; fi"
        )

    default = list

    def process(self, output: Sequence[str]) -> list[str]:
        """As they are."""
        return list(output)


class Drift(FactBase[str]):
    """How what the kernel has differs from the file: empty if it does not.

    The file is loaded into a network namespace made for this, and listed there: the kernel's own words on both sides.
    """

    def command(self) -> str:
        """``absent``, ``broken: …``, ``different`` or nothing."""
        return (
            f"if ! command -v nft >/dev/null || [ ! -e {RULESET} ] || ! loaded=$({_LOADED}); then echo absent; "
            f"elif ! wanted=$(unshare --net sh -c 'nft -f {RULESET} && {_LOADED}' 2>&1); then "
            'echo "broken: $wanted"; '
            'elif [ "$wanted" != "$loaded" ]; then echo different; fi'
        )

    @staticmethod
    def default() -> str:
        """Nothing was said."""
        return ""


class Traces(FactBase[list[str]]):
    """What there is of our firewall on the host, for when it is not wanted."""

    def command(self) -> str:
        """One word per line."""
        return (
            f"if command -v nft >/dev/null && {_LOADED} >/dev/null; then echo table; fi; "
            f"if [ -e {UNIT_FILE} ]; then echo unit; fi; "
            f"if [ -e {RULESET} ]; then echo ruleset; fi"
        )

    default = list

    def process(self, output: Sequence[str]) -> list[str]:
        """As they are."""
        return list(output)
