"""``metalscribe transcribe`` with an engine of its own: real processes, the real demo model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from metalscribe.cli.documents import Documents
from metalscribe.errors import InvalidParameter
from metalscribe.render import Format

SAMPLE = Path(__file__).parents[2] / "service" / "metalscribe" / "samples" / "sample.flac"
pytestmark = pytest.mark.model

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path, demo_model: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METALSCRIBE_")}
    return {
        **inherited,
        "METALSCRIBE_MODEL": "demo",
        "METALSCRIBE_DEVICE": "cpu",
        "METALSCRIBE_STATE_DIR": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
    }


@pytest.fixture
def transcribe(environment: dict[str, str]) -> Run:
    def run(*arguments: str | Path, stdin: bytes | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "metalscribe", "transcribe", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env={**environment, **variables},
            check=False,
            timeout=150,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum() or character == " ")


@pytest.mark.speech
def test_one_recording_is_just_its_text(transcribe: Run, data: Path) -> None:
    done = transcribe(data / "english" / "jfk" / "jfk.wav")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ask not what your country can do for you" in plain(done.stdout)
    assert done.stdout.endswith(".\n")
    assert "==>" not in done.stdout


def test_several_recordings_get_headlines_and_a_bad_one_does_not_stop_the_others(
    transcribe: Run, tmp_path: Path
) -> None:
    first, bad, last = tmp_path / "first.flac", tmp_path / "bad.flac", tmp_path / "last one.flac"
    shutil.copy(SAMPLE, first)
    bad.write_bytes(b"neither audio nor video" * 100)
    last.symlink_to(SAMPLE)
    done = transcribe(first, bad, tmp_path / "absent.wav", tmp_path, last)
    assert done.returncode == 1
    head, text, gap, next_head, next_text = done.stdout.splitlines()
    assert (head, gap, next_head) == (f"==> {first} <==", "", f"==> {last} <==")
    assert text == next_text
    assert len(text.split()) > 10
    errors = done.stderr.splitlines()
    assert errors[0] == f"Error: {tmp_path / 'absent.wav'}: No such file or directory"
    assert errors[1] == f"Error: {tmp_path}: Is a directory"
    assert errors[2].startswith(f"Error: {bad}: ")
    assert len(errors) == 3


def test_json_is_one_line_per_recording_and_names_it(transcribe: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy.flac"
    shutil.copy(SAMPLE, copy)
    done = transcribe(SAMPLE, copy, "--format", "json", "--word-timestamps", "--language", "English")
    assert done.returncode == 0, done.stderr
    one, two = map(json.loads, done.stdout.splitlines())
    assert [one["file"], two["file"]] == [str(SAMPLE), str(copy)]
    assert one["id"] != two["id"]
    assert (one["model"], one["language"]) == ("demo", "en")
    words = [word for segment in one["segments"] for word in segment["words"]]
    assert "".join(word["word"] for word in words).split() == one["text"].split()
    assert one["duration"] > words[-1]["end"] > words[0]["start"] >= 0


def test_stdin_and_pipes_are_read_once_and_spooled(transcribe: Run, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.flac"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(SAMPLE.read_bytes()), daemon=True)
    writer.start()
    done = transcribe("-", pipe, stdin=SAMPLE.read_bytes())
    writer.join(10)
    assert (done.returncode, done.stderr) == (0, "")
    head, text, _, next_head, next_text = done.stdout.splitlines()
    assert (head, next_head) == ("==> stdin <==", f"==> {pipe} <==")
    assert text == next_text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("metalscribe-")] == []


def test_output_directory_is_made_and_its_files_are_never_overwritten_unasked(transcribe: Run, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "subtitles"
    done = transcribe(SAMPLE, "--format", "srt", "--output-dir", directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = directory / "sample.srt"
    cues = written.read_text(encoding="utf-8")
    assert cues.startswith("1\n00:00:")
    written.write_text("corrected by hand")

    done = transcribe(SAMPLE, "--format", "srt", "--output-dir", directory)
    assert done.returncode == 1
    assert done.stderr == f"Error: {SAMPLE}: {written} is there already; --force overwrites it\n"
    assert written.read_text() == "corrected by hand"

    done = transcribe(SAMPLE, "--format", "srt", "--output-dir", directory, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert written.read_text(encoding="utf-8") == cues


def test_json_files_carry_all_that_the_line_does(transcribe: Run, tmp_path: Path) -> None:
    assert transcribe(SAMPLE, "-f", "json", "-o", tmp_path).returncode == 0
    document = json.loads((tmp_path / "sample.json").read_text(encoding="utf-8"))
    assert document["file"] == str(SAMPLE)
    assert document["segments"]
    assert document["segments"][0]["words"] == []


def test_the_recording_itself_is_never_the_output(transcribe: Run, tmp_path: Path) -> None:
    recording = tmp_path / "talk.txt"
    shutil.copy(SAMPLE, recording)
    done = transcribe(recording, "-o", tmp_path, "--force")
    assert done.returncode == 1
    assert "over the recording itself" in done.stderr
    assert recording.read_bytes() == SAMPLE.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a.wav", "b.wav", "-f", "srt"), "--output-dir"),
        (("-", "-"), "only once"),
        (("one/a.wav", "two/a.mp3", "-o", "out"), "one/a.wav and two/a.mp3 would both be written to out/a.txt"),
        (("a.wav", "--ca-file", "ca.pem"), "--url"),
        (("a.wav", "--url", "https://host", "--model", "tiny"), "--model"),
    ],
)
def test_arguments_that_contradict_each_other_are_misuse(
    transcribe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = transcribe(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--task", "translate"), ("--language", "de")])
def test_what_the_model_cannot_do_is_said_once(transcribe: Run, tmp_path: Path, option: tuple[str, str]) -> None:
    copy = tmp_path / "copy.flac"
    shutil.copy(SAMPLE, copy)
    done = transcribe(SAMPLE, copy, *option)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {option[0].strip('-')}=")
    assert done.stderr.count("\n") == 1


def test_settings_of_the_service_that_would_get_in_the_way_do_not(transcribe: Run) -> None:
    done = transcribe(SAMPLE, METALSCRIBE_WHEN_UNLOADED="reject", METALSCRIBE_MAX_QUEUE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 10


def test_more_recordings_than_the_queue_holds_are_no_problem(transcribe: Run, tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.flac" for number in range(4)]
    for copy in copies:
        copy.symlink_to(SAMPLE)
    done = transcribe(*copies, METALSCRIBE_MAX_QUEUE="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("==>")] == [
        f"==> {copy} <==" for copy in copies
    ]


def test_an_audio_track_that_is_not_there_is_the_recordings_fault(transcribe: Run) -> None:
    done = transcribe(SAMPLE, "--audio-track", "7")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {SAMPLE}: ")


def test_control_c_ends_everything_that_was_started(environment: dict[str, str], tmp_path: Path) -> None:
    # Enough of the same that the signal comes long before the end.
    recording = tmp_path / "long.flac"
    recording.symlink_to(SAMPLE)
    with subprocess.Popen(
        [sys.executable, "-m", "metalscribe", "-v", "transcribe", "--mode", "accurate", *[str(recording)] * 40],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "model loaded" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("metalscribe-")] == []


def test_documents_refuse_what_appeared_while_the_work_went_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from metalscribe.cli.recordings import Recording

    recording = Recording("talk.flac", SAMPLE)
    documents = Documents(Format.TEXT, several=False, directory=tmp_path, overwrite=False)
    documents.check(["talk.flac"])
    assert documents.obstacle(recording) is None
    (tmp_path / "talk.txt").write_text("somebody else's")
    documents.put(recording, "ours\n")
    assert documents.failures == 1
    assert (tmp_path / "talk.txt").read_text() == "somebody else's"
    assert "is there already" in capsys.readouterr().err


def test_documents_need_a_directory_that_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    documents = Documents(Format.TEXT, several=False, directory=tmp_path / "file", overwrite=False)
    with pytest.raises(InvalidParameter, match="File exists"):
        documents.check(["talk.flac"])
