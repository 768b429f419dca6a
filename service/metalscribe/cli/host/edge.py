"""From the outside in: firewall, nginx, and a transcription by HTTPS as a client would ask for one."""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from metalscribe.cli.commands import Completed, run
from metalscribe.cli.console import printable
from metalscribe.cli.findings import Finding, Status
from metalscribe.cli.host.deployment import CREDENTIALS, Host, HostDocument, bracketed
from metalscribe.cli.host.units import show
from metalscribe.errors import ConfigurationError

_SECONDS: Final = 20.0
_TRANSCRIBE_SECONDS: Final = 300.0
_CONNECT_SECONDS: Final = 5.0
_FIREWALL: Final = "metalscribe-firewall.service"
_TABLE: Final = ("inet", "metalscribe")
_KEY: Final = CREDENTIALS / "metalscribe_api_key"
_SAMPLES: Final = Path(__file__).parents[2] / "samples"
_ALIKE: Final = 0.5
"""Share of words that even a small model gets right in the sample, which is clearly spoken."""

_BUSY: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_MEANINGS: Final = {
    401: "The host's key is not the one that the service started with: `/opt/metalscribe/bin/metalscribe-release restart`.",
    403: "The host's key lacks the scope to transcribe, or nginx's allow-list keeps this machine out.",
    404: "nginx serves another site by that name: `nginx -T` shows all of them.",
    413: "nginx's client_max_body_size is smaller than the sample: run the deploy again.",
    502: "nginx runs, the service behind it does not: `systemctl status metalscribe`.",
    504: "The service took longer than nginx waits: `journalctl -u metalscribe`.",
}


def nginx(host: Host) -> Finding:
    """Whether nginx runs, and would start again with the configuration that is there."""
    del host
    properties = show("nginx.service", "LoadState", "ActiveState", "UnitFileState")
    if properties["LoadState"] != "loaded":
        return Finding(Status.FAIL, "not installed", "Run the deploy again.")
    if properties["ActiveState"] != "active":
        return Finding(Status.FAIL, properties["ActiveState"], "`nginx -t`, and `journalctl -u nginx -n 50`.")
    if os.geteuid() != 0:
        return Finding(
            Status.WARN, "active; its configuration can be tested by root alone", "`sudo metalscribe doctor`"
        )
    test = run(["nginx", "-t", "-q"], seconds=_SECONDS)
    if test.status != 0:
        return Finding(
            Status.FAIL,
            f"active, but its configuration is broken, and would not survive a restart: {_emergency(test)}",
            "Mend it before nginx is restarted; the deploy writes its own files anew.",
        )
    if properties["UnitFileState"] != "enabled":
        return Finding(Status.WARN, "active, but does not start at boot", "`systemctl enable nginx`.")
    return Finding(Status.OK, "active, its configuration is valid")


def _emergency(test: Completed) -> str:
    """What nginx says is wrong; the line after it only says that something is."""
    found = re.search(r"\[emerg\] (?:\d+#\d+: )?(.+)", test.err)
    return found[1] if found else test.complaint


def firewall(host: Host) -> Finding:
    """Whether the kernel has the rules that the deploy wrote."""
    del host
    if os.geteuid() != 0:
        return Finding(Status.WARN, "root alone may see the kernel's rules", "`sudo metalscribe doctor`")
    table = run(["nft", "--stateless", "list", "table", *_TABLE], seconds=_SECONDS)
    if table.status != 0:
        return Finding(
            Status.FAIL,
            f"the kernel has no table {' '.join(_TABLE)}: every port is open",
            f"`systemctl restart {_FIREWALL}`, and `journalctl -u {_FIREWALL}`.",
        )
    state = show(_FIREWALL, "UnitFileState")["UnitFileState"]
    if state != "enabled":
        return Finding(
            Status.WARN,
            f"the rules are in force, but would not be after a reboot: {_FIREWALL} is {state or 'missing'}",
            f"`systemctl enable {_FIREWALL}`, or run the deploy again.",
        )
    return Finding(Status.OK, "its rules are in force")


@dataclass(frozen=True, slots=True)
class _Trust:
    """Authorities to verify the certificate by; ``limits`` says what is not proven that way."""

    context: ssl.SSLContext
    limits: str


def https(host: Host) -> Finding:
    """Whether a recording sent to nginx by its public name, with the host's own key, comes back as its words.

    The connection goes to loopback; the certificate is verified for the name and against the authority, as by any client.
    """
    document = host.document()
    try:
        key = host.at(_KEY).read_text("ascii").strip()
    except FileNotFoundError:
        return Finding(Status.FAIL, f"{_KEY} is missing", "Run the deploy again, which makes the host a key.")
    for trust in _authorities(host, document):
        try:
            answer = _post(document, key, trust.context)
        except httpx.ConnectError as error:
            refusal = error
            if not _is_unknown_authority(error):
                break
        except httpx.HTTPError as error:
            return Finding(
                Status.FAIL,
                f"the connection broke off: {str(error) or type(error).__name__}",
                "`journalctl -u nginx -u metalscribe -n 50`.",
            )
        else:
            spoken = (_SAMPLES / "sample.txt").read_text("utf-8") if document.words else None
            return judge_answer(answer, spoken, trust.limits)
    return _judge_refusal(str(refusal), document)


def judge_answer(answer: httpx.Response, spoken: str | None, limits: str = "") -> Finding:
    """The finding for the answer to ``POST /transcribe`` of a recording.

    Args:
        answer: the response.
        spoken: what is said in the recording; None for a model that does not know its language.
        limits: what the certificate's verification left open, if anything.
    """
    if answer.status_code != HTTPStatus.OK:
        reason = _reason(answer)
        if answer.status_code in _BUSY:
            wait = answer.headers.get("Retry-After", "")
            again = f" in {wait} s" if wait.isdecimal() else ""
            return Finding(Status.WARN, f"{answer.status_code}: {reason}", f"The service is busy; try again{again}.")
        meaning = _MEANINGS.get(answer.status_code, "`journalctl -u metalscribe -u nginx -n 50` tells more.")
        return Finding(Status.FAIL, f"{answer.status_code}: {reason}", meaning)
    try:
        document: dict[str, Any] = answer.json()
        heard, seconds, model = document["text"], document["processing_time"], document["model"]
    except (ValueError, KeyError, TypeError):
        return Finding(Status.FAIL, "200, but no transcript: something else answers there", _MEANINGS[404])
    what = f"{len(_words(heard))} words in {answer.elapsed.total_seconds():.1f} s ({seconds:.1f} s at work), {model}"
    if spoken is not None and _alike(spoken, heard) < _ALIKE:
        return Finding(
            Status.FAIL, f"{what}; but they are not what was said", "`metalscribe model verify`; try another model."
        )
    return Finding(Status.WARN if limits else Status.OK, what + (f"; {limits}" if limits else ""))


def _post(document: HostDocument, key: str, trust: ssl.SSLContext) -> httpx.Response:
    name, port = document.server_names[0], document.https_port
    # Straight to nginx on this machine, whatever DNS says, but under the public name in TLS and in HTTP.
    with (
        httpx.Client(
            verify=trust, trust_env=False, timeout=httpx.Timeout(_TRANSCRIBE_SECONDS, connect=_CONNECT_SECONDS)
        ) as client,
        (_SAMPLES / "sample.flac").open("rb") as recording,
    ):
        return client.post(
            f"https://127.0.0.1:{port}/transcribe",
            headers={"Host": bracketed(name) + ("" if port == 443 else f":{port}"), "X-API-Key": key},
            files={"file": ("sample.flac", recording)},
            extensions={"sni_hostname": name},
        )


def _authorities(host: Host, document: HostDocument) -> Iterator[_Trust]:
    """What to verify by: the authority that is known, else all that this machine knows, else the certificate itself."""
    if document.ca is not None:
        yield _Trust(_believing(host, document.ca), "")
        return
    yield _Trust(ssl.create_default_context(), "")
    itself = _believing(host, document.certificate)
    itself.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    yield _Trust(itself, "but this machine does not know the authority of the certificate")


def _believing(host: Host, file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(host.at(file)))
    except (FileNotFoundError, ssl.SSLError) as error:
        reason = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else "is missing"
        raise ConfigurationError(f"{file} {reason}: run the deploy again.") from None


def _is_unknown_authority(error: httpx.ConnectError) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error) and ("issuer" in str(error) or "self-signed" in str(error))


def _judge_refusal(reason: str, document: HostDocument) -> Finding:
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        told = reason.rpartition("certificate verify failed: ")[2].rpartition(" (_ssl")[0]
        return Finding(Status.FAIL, f"clients cannot trust the certificate: {told or reason}", "Run the deploy again.")
    return Finding(
        Status.FAIL, f"nothing answers on port {document.https_port}: {reason}", "`systemctl status nginx`, `nginx -t`."
    )


def _reason(answer: httpx.Response) -> str:
    if answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        try:
            return printable(str(answer.json()["detail"]))
        except (ValueError, KeyError, TypeError):
            return "a problem that it does not explain"
    return printable(answer.reason_phrase)


def _alike(spoken: str, heard: str) -> float:
    return difflib.SequenceMatcher(None, _words(spoken), _words(heard), autojunk=False).ratio()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
