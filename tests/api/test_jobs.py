"""``/jobs``: handed in, asked for, followed, called off."""

from __future__ import annotations

import re
import uuid

import httpx
import pytest

from .harness import Service, Start, problem, says, silence, wait_for
from .jobs import ended, job, recordings, submit, told

pytestmark = pytest.mark.model

FACTS = {
    *("id", "status", "name", "language", "task", "model", "duration_secs", "progress", "segments", "text"),
    *("error", "error_code", "created_at", "started_at", "completed_at"),
}


def test_a_job_is_done_and_looks_as_documented(
    service: Service, client: httpx.Client, sample: bytes, sample_text: str
) -> None:
    job_id = submit(client, sample, language="en", task="transcribe")
    done = ended(client, job_id)
    assert set(done) == FACTS
    assert (done["id"], done["status"], done["progress"]) == (job_id, "done", 100)
    assert (done["language"], done["task"], done["name"]) == ("en", "transcribe", "sample.flac")
    assert says(done["text"], sample_text)
    assert done["duration_secs"] == pytest.approx(14.7, abs=0.1)
    assert "".join(segment["text"] for segment in done["segments"]).strip() == done["text"]
    assert [segment["index"] for segment in done["segments"]] == list(range(len(done["segments"])))
    assert all(segment["words"] == [] for segment in done["segments"])
    assert done["error"] is None
    assert done["created_at"] <= done["started_at"] <= done["completed_at"]
    wait_for(lambda: not recordings(service), "the recording to be removed")
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    problem(client.get(f"/jobs/{job_id}"), 404, "not_found")


def test_a_job_says_what_a_transcription_says(client: httpx.Client, sample: bytes) -> None:
    options = {"word_timestamps": "true", "prompt": "Glossary: trains."}
    at_once = client.post("/transcribe", files={"file": ("a.flac", sample)}, data=options).json()
    later = ended(client, submit(client, sample, **options))
    assert later["text"] == at_once["text"]
    assert later["segments"] == at_once["segments"]


def test_a_finished_job_can_be_had_as_subtitles(client: httpx.Client, sample: bytes) -> None:
    subtitles = client.post("/transcribe", files={"file": ("a.flac", sample)}, data={"format": "srt"})
    job_id = submit(client, sample)
    ended(client, job_id)
    for form in ("srt", "vtt", "tsv", "text"):
        answer = client.get(f"/jobs/{job_id}", params={"format": form})
        assert answer.status_code == 200
        assert answer.text.strip()
    assert client.get(f"/jobs/{job_id}?format=srt").text == subtitles.text
    problem(client.get(f"/jobs/{job_id}?format=pdf"), 400)


def test_jobs_are_listed_newest_first_and_in_pages(service: Service, sample: bytes) -> None:
    mine = service.client(service.new_key("lister"))
    ids = [submit(mine, silence(), "silence.wav") for _ in range(5)]
    for job_id in ids:
        ended(mine, job_id)
    first = mine.get("/jobs", params={"limit": 3}).json()
    assert [one["id"] for one in first["jobs"]] == ids[:1:-1]
    assert "segments" not in first["jobs"][0]
    assert "text" not in first["jobs"][0]
    second = mine.get("/jobs", params={"limit": 3, "cursor": first["next"]}).json()
    assert [one["id"] for one in second["jobs"]] == ids[1::-1]
    assert second["next"] is None
    assert len(mine.get("/jobs", params={"status": "done"}).json()["jobs"]) == 5
    assert mine.get("/jobs", params={"status": "failed"}).json()["jobs"] == []
    problem(mine.get("/jobs", params={"limit": 0}), 400)
    problem(mine.get("/jobs", params={"page": 2}), 400)


def test_another_keys_job_does_not_exist(service: Service, client: httpx.Client) -> None:
    job_id = submit(client, silence(), "silence.wav")
    stranger = service.client(service.new_key("stranger"))
    for answer in (
        stranger.get(f"/jobs/{job_id}"),
        stranger.delete(f"/jobs/{job_id}"),
        stranger.get(f"/jobs/{job_id}/stream"),
    ):
        problem(answer, 404, "not_found")
    assert stranger.get("/jobs").json() == {"jobs": [], "next": None}
    for answer in (
        client.get(f"/jobs/{uuid.uuid4()}"),
        client.get("/jobs/1"),
        client.get("/jobs/..%2f..%2fetc"),
        client.delete(f"/jobs/{uuid.uuid4()}"),
    ):
        problem(answer, 404)
    assert ended(client, job_id)["status"] == "done"


def test_an_admins_key_sees_them_all(service: Service, client: httpx.Client) -> None:
    theirs = service.client(service.new_key("somebody"))
    job_id = submit(theirs, silence(), "silence.wav")
    ended(theirs, job_id)
    assert job(client, job_id)["status"] == "done"
    assert job_id not in [one["id"] for one in client.get("/jobs").json()["jobs"]], "its own, unless it asks"
    every = {one["id"]: one for one in client.get("/jobs", params={"all": "true", "limit": 500}).json()["jobs"]}
    assert every[job_id]["key_id"] in service.keys("list", "--json")
    problem(theirs.get("/jobs", params={"all": "true"}), 403, "forbidden")
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    problem(theirs.get(f"/jobs/{job_id}"), 404, "not_found")


def test_without_a_key_there_are_no_jobs(service: Service, sample: bytes) -> None:
    nobody = service.client(None)
    problem(nobody.post("/jobs", files={"audio": ("a.flac", sample)}), 401)
    problem(nobody.get("/jobs"), 401)
    metrics_only = service.client(service.new_key("metrics-only", "--scope", "metrics"))
    problem(metrics_only.post("/jobs", files={"audio": ("a.flac", sample)}), 403)


def test_what_cannot_be_done_is_refused_at_once(client: httpx.Client, sample: bytes) -> None:
    def refused(**data: str) -> httpx.Response:
        return client.post("/jobs", files={"audio": ("a.flac", sample)}, data=data)

    assert problem(refused(language="klingon"), 400)["parameter"] == "language"
    assert problem(refused(task="summarize"), 400)["parameter"] == "task"
    assert problem(refused(webhook_url="nonsense"), 400)["detail"]
    assert problem(refused(webhook_url="ftp://example.com/hook"), 400)["detail"]
    assert problem(refused(format="srt"), 400)["parameter"] == "format"
    problem(client.post("/jobs", files={"file": ("a.flac", sample)}), 400)
    problem(client.post("/jobs", json={"audio": "x"}), 400)
    assert client.get("/jobs", params={"limit": 500}).status_code == 200


def test_what_is_no_recording_fails_with_the_reason(service: Service, client: httpx.Client) -> None:
    failed = ended(client, submit(client, b"neither audio nor video", "notes.txt"))
    assert (failed["status"], failed["error_code"]) == ("failed", "unsupported_media")
    assert "not audio or video" in failed["error"]
    assert failed["completed_at"]
    wait_for(lambda: not recordings(service), "the recording to be removed")


def test_a_retry_is_the_same_job(client: httpx.Client, sample: bytes) -> None:
    def hand_in(content: bytes) -> httpx.Response:
        return client.post("/jobs", files={"audio": ("a.flac", content)}, headers={"Idempotency-Key": f"once-{mark}"})

    mark = uuid.uuid4()
    first, second = hand_in(sample), hand_in(sample)
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    problem(hand_in(silence()), 422, "idempotency_mismatch")
    ended(client, first.json()["job_id"])


# --- following --------------------------------------------------------------------------------------------------------


def test_a_stream_tells_all_and_ends_with_the_job(client: httpx.Client, long_wav: bytes) -> None:
    job_id = submit(client, long_wav[: 44 + 2 * 16_000 * 90], "minutes.wav")
    with client.stream("GET", f"/jobs/{job_id}/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        events = told(answer)
    kinds = [kind for _, kind, _ in events]
    assert kinds[-1] == "done"
    assert set(kinds) == {"segment", "progress", "done"}
    assert kinds.index("segment") < len(kinds) - 4, "segments come before the end"
    assert all(data["type"] == kind for _, kind, data in events)
    percents = [data["percent"] for _, kind, data in events if kind == "progress"]
    assert percents == sorted(set(percents))
    done = events[-1][2]["job"]
    assert done == job(client, job_id)
    segments = [
        {name: value for name, value in data.items() if name != "type"} for _, kind, data in events if kind == "segment"
    ]
    assert segments == done["segments"]


def test_who_comes_late_or_again_gets_the_rest(client: httpx.Client, long_wav: bytes) -> None:
    job_id = submit(client, long_wav[: 44 + 2 * 16_000 * 60], "minute.wav")
    done = ended(client, job_id)
    count = len(done["segments"])
    assert count > 3

    def follow(last: str | None) -> httpx.Response:
        return client.get(f"/jobs/{job_id}/stream", headers={"Last-Event-ID": last} if last else {})

    everything = told(follow(None))
    assert [kind for _, kind, _ in everything] == [*["segment"] * count, "done"]
    seen = everything[2][0]
    rest = told(follow(seen))
    assert rest == everything[3:]
    assert follow(everything[-1][0]).status_code == 204, "who has seen the end need not come again"
    assert told(follow("what is this")) == everything


def test_a_stream_ends_when_the_job_is_cancelled(client: httpx.Client, long_wav: bytes) -> None:
    job_id = submit(client, long_wav, "long.wav")
    with client.stream("GET", f"/jobs/{job_id}/stream") as answer:
        wait_for(lambda: job(client, job_id)["segments"], "the first segments")
        assert client.delete(f"/jobs/{job_id}").status_code == 204
        events = told(answer)
    assert events[-1][1] == "cancelled"
    assert events[-1][2]["job"]["status"] == "cancelled"


# --- calling off ------------------------------------------------------------------------------------------------------


def batches(client: httpx.Client) -> float:
    """How many batches the model has done."""
    (line,) = re.findall(r'(?m)^metalscribe_batch_seconds_count\{model="demo"\} (\S+)$', client.get("/metrics").text)
    return float(line)


def test_cancelling_a_running_job_frees_the_engine_within_a_batch(
    service: Service, client: httpx.Client, long_wav: bytes
) -> None:
    job_id = submit(client, long_wav, "long.wav")
    wait_for(lambda: job(client, job_id)["segments"], "the first segments")
    running = job(client, job_id)
    assert running["status"] == "running"
    assert 0 < running["progress"] < 100
    before = batches(client)
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    left = service.queue()
    assert (left["chunks_waiting"], left["requests"]) == (0, 0), "nothing of it waits for the model any more"
    wait_for(service.idle, "the batches under way to end", 10)
    # Those under way when it was cancelled, two side by side on a processor, and one that ended while we looked.
    assert batches(client) - before <= 3
    assert not recordings(service)
    cancelled = job(client, job_id)
    assert cancelled["status"] == "cancelled"
    assert cancelled["segments"][: len(running["segments"])] == running["segments"], "what was done can still be read"
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    problem(client.get(f"/jobs/{job_id}"), 404)


def test_a_queued_job_is_cancelled_before_it_begins(start: Start, long_wav: bytes) -> None:
    service = start(JOBS_RUNNING=1)
    client = service.client()
    first = submit(client, long_wav, "long.wav")
    second = submit(client, silence(), "silence.wav")
    wait_for(lambda: job(client, first)["status"] == "running", "the first job to run")
    assert job(client, second)["status"] == "queued"
    assert client.delete(f"/jobs/{second}").status_code == 204
    assert job(client, second)["status"] == "cancelled"
    assert len(recordings(service)) == 1
    client.delete(f"/jobs/{first}")


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_quotas_and_budgets_refuse_with_what_to_do(start: Start, long_wav: bytes, sample: bytes) -> None:
    service = start(JOBS_RUNNING=1, JOBS_QUEUED_PER_KEY=2, JOBS_DISK_MB=40, JOBS_MAX_UPLOAD_MB=39)
    client = service.client()
    ids = [submit(client, long_wav, "long.wav")]
    full = client.post("/jobs", files={"audio": ("long.wav", long_wav)})
    assert "METALSCRIBE_JOBS_DISK_MB" in problem(full, 507, "storage_full")["detail"]
    ids.append(submit(client, sample))
    too_many = client.post("/jobs", files={"audio": ("a.flac", sample)})
    assert "2 of this key's jobs" in problem(too_many, 429, "rate_limited")["detail"]
    assert int(too_many.headers["retry-after"]) > 0
    other = service.client(service.new_key("other"))
    ids.append(submit(other, sample))
    problem(client.post("/jobs", files={"audio": ("big.wav", long_wav + bytes(2**22))}), 413)
    assert len(recordings(service)) == 3, "nothing is left of what was refused"
    client.delete(f"/jobs/{ids[0]}")
    assert ended(client, ids[1])["status"] == "done"
    assert ended(other, ids[2])["status"] == "done"


def test_a_key_with_many_jobs_does_not_keep_another_waiting(start: Start, long_wav: bytes, sample: bytes) -> None:
    service = start(JOBS_RUNNING=1)
    busy, patient = service.client(), service.client(service.new_key("patient"))
    crowd = [submit(busy, long_wav[: 44 + 2 * 16_000 * 60]), *(submit(busy, sample) for _ in range(8))]
    mine = ended(patient, submit(patient, sample))
    others = [ended(busy, one) for one in crowd]
    assert sum(one["completed_at"] < mine["completed_at"] for one in others) <= 3
