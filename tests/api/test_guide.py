"""The examples of docs/clients.md, taken from the page and run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import KEY, Service, says

pytestmark = pytest.mark.model

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "clients.md").read_text()
JAVASCRIPT = Path(__file__).parent / "javascript"
CLIENT = ROOT / ".cache" / "openai-javascript"


def examples(language: str) -> list[str]:
    """The code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, f"the guide has no example for {language}"
    return found


@pytest.fixture
def folder(tmp_path: Path, sample: bytes) -> Path:
    """Where a reader stands: a recording is there."""
    (tmp_path / "meeting.flac").write_bytes(sample)
    return tmp_path


def run(service: Service, folder: Path, *command: str | Path) -> str:
    """Run a command as a reader would; returns what it printed."""
    environment = {**os.environ, "URL": service.url, "KEY": KEY, "no_proxy": "*"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", examples("python"), ids=["openai", "openai-stream", "httpx"])
def test_python(service: Service, folder: Path, sample_text: str, example: str) -> None:
    (folder / "example.py").write_text(example)
    printed = run(service, folder, sys.executable, "example.py")
    assert says(re.sub(r"\d+\.\d\d", "", printed), sample_text)


@pytest.mark.parametrize("command", [line for block in examples("sh") for line in block.splitlines() if line])
def test_curl(service: Service, folder: Path, sample_text: str, command: str) -> None:
    printed = run(service, folder, "sh", "-c", command)
    if "/v1/models" in command:
        assert json.loads(printed)["object"] == "list"
    elif "detect-language" in command:
        assert json.loads(printed)["language_code"] == "en"
    else:
        assert says(re.sub(r"[0-9:,]+ --> [0-9:,]+|^\d+$", "", printed, flags=re.MULTILINE), sample_text)


@pytest.fixture(scope="session")
def javascript_client() -> Path:
    """OpenAI's client for JavaScript, as locked; installed once for the checkout."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Node.js is not at hand")
    if not (CLIENT / "node_modules" / "openai").is_dir():
        made = CLIENT.with_name(f"{CLIENT.name}.{os.getpid()}")
        shutil.copytree(JAVASCRIPT, made, ignore=shutil.ignore_patterns("node_modules"))
        command = (npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=150, check=False)
        if done.returncode:
            shutil.rmtree(made)
            pytest.skip(f"OpenAI's client for JavaScript could not be installed: {done.stderr[-500:]}")
        try:
            made.rename(CLIENT)
        except OSError:  # another process was faster: its copy is as good
            shutil.rmtree(made)
    return CLIENT


def test_javascript(service: Service, folder: Path, sample_text: str, javascript_client: Path) -> None:
    (example,) = examples("javascript")
    (folder / "example.mjs").write_text(example)
    (folder / "node_modules").symlink_to(javascript_client / "node_modules")
    printed = run(service, folder, "node", "example.mjs")
    once, count, again = re.split(r" (\d+)\n", printed)
    assert says(once, sample_text)
    assert says(again, sample_text)
    assert int(count) >= len(once.split())


def test_javascript_client_and_errors(service: Service, folder: Path, javascript_client: Path) -> None:
    """What a program sees of OpenAI's client when something is wrong, beside the guide's example."""
    (folder / "example.mjs").write_text(
        """
        import fs from "node:fs";
        import OpenAI from "openai";
        const file = () => fs.createReadStream("meeting.flac");
        const client = new OpenAI({ baseURL: `${process.env.URL}/v1`, apiKey: process.env.KEY, maxRetries: 0 });
        const stranger = new OpenAI({ baseURL: `${process.env.URL}/v1`, apiKey: "msk_no", maxRetries: 0 });
        const failing = [
          () => client.audio.transcriptions.create({ model: "gpt-5", file: file() }),
          () => client.audio.transcriptions.create({ model: "whisper-1", file: file(), language: "klingon" }),
          () => client.audio.translations.create({ model: "whisper-1", file: file() }),
          () => stranger.models.list(),
        ];
        const seen = [];
        for (const call of failing) {
          try { await call(); seen.push("passed"); }
          catch (error) { seen.push([error.constructor.name, error.status, error.code, error.param]); }
        }
        const names = [];
        for await (const model of client.models.list()) names.push(model.id);
        const text = await client.audio.transcriptions.create(
          { model: "whisper-1", file: file(), response_format: "vtt", timestamp_granularities: undefined });
        console.log(JSON.stringify({ seen, names, text }));
        """
    )
    (folder / "node_modules").symlink_to(javascript_client / "node_modules")
    told = json.loads(run(service, folder, "node", "example.mjs"))
    assert told["seen"] == [
        ["NotFoundError", 404, "model_not_found", "model"],
        ["BadRequestError", 400, "invalid_parameter", "language"],
        ["BadRequestError", 400, "invalid_parameter", "task"],
        ["AuthenticationError", 401, "invalid_api_key", None],
    ]
    assert "whisper-1" in told["names"]
    assert told["text"].startswith("WEBVTT\n")


def test_elixir(service: Service, folder: Path, sample_text: str) -> None:
    """Run where Elixir and its package Req are at hand; looked through for mistakes of grammar where Elixir alone is."""
    (example,) = examples("elixir")
    elixir = shutil.which("elixir")
    if elixir is None:
        pytest.skip("Elixir is not at hand")
    (folder / "example.exs").write_text(f'{example}\nIO.puts(Transcription.transcribe("meeting.flac")["text"])\n')
    run(service, folder, elixir, "-e", 'Code.string_to_quoted!(File.read!("example.exs"))')
    if "true" not in run(service, folder, elixir, "-e", "IO.puts(Code.ensure_loaded?(Req))"):
        pytest.skip("Elixir's package Req is not at hand")
    assert says(run(service, folder, elixir, "example.exs"), sample_text)
