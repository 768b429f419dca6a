"""What ``/metrics`` and ``/queue-metrics`` tell of the real service, whoever asks it for whatever.

The service is the one that exports everything (``observed``): its two GPUs are simulated, in their library alone.
"""

from __future__ import annotations

import http.server
import threading
import uuid
from itertools import product
from pathlib import Path

import httpx
import pytest

from nvml import tell

from .conftest import GPUS, READER
from .harness import Service, problem, send, silence, wait_for
from .scraped import OPENMETRICS, Scrape, as_text, grown, loaded, scrape, when

pytestmark = pytest.mark.model

REQUESTS = "metalscribe_http_requests_total"
SECONDS = "metalscribe_http_request_seconds_count"
IN_PROGRESS = "metalscribe_http_requests_in_progress"


def test_every_surface_is_counted(observed: Service) -> None:
    client = observed.client()
    asked = {
        "native": ("POST", "/transcribe"),
        "jobs": ("GET", "/jobs"),
        "model": ("GET", "/model/status"),
        "openai": ("GET", "/v1/models"),
        "asr": ("GET", "/asr"),
        "operation": ("GET", "/healthz"),
        "other": ("GET", "/elsewhere"),
    }
    before = scrape(client)
    for method, path in asked.values():
        client.request(method, path)
    for surface in asked.keys() - {"operation"}:
        after = grown(client, before, 1, REQUESTS, surface=surface)
        assert after.value(SECONDS, surface=surface) - before.value(SECONDS, surface=surface) == 1
    assert after.value(REQUESTS, path="/healthz") - before.value(REQUESTS, path="/healthz") == 1
    after = scrape(client)
    assert after.value(REQUESTS, path="/transcribe", method="POST", status="400") >= 1
    assert after.value(REQUESTS, path="/elsewhere") == 0
    assert after.value(REQUESTS, path="unmatched", surface="other", status="404") >= 1
    when(
        client, lambda one: one.value(IN_PROGRESS) == one.value(IN_PROGRESS, surface="operation") == 1, "all to be over"
    )


def test_a_transcription_leaves_its_figures(observed: Service, sample: bytes) -> None:
    client = observed.client()
    before = scrape(client)
    send(client, sample)
    after = grown(client, before, 1, REQUESTS, path="/transcribe", method="POST", status="200", surface="native")

    def growth(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert growth("metalscribe_upload_bytes_sum", surface="native") == len(sample)
    assert growth("metalscribe_recording_seconds_sum", surface="native") == pytest.approx(14.684, abs=0.05)
    assert growth("metalscribe_real_time_factor_count", surface="native") == 1
    assert growth("metalscribe_real_time_factor_sum", surface="native") > 0
    assert growth(SECONDS, surface="native", **{"class": "2xx"}) == 1
    assert growth("metalscribe_audio_seconds_total", model="demo") == pytest.approx(14.684, abs=0.05)


def test_a_recording_that_was_fetched_counts_like_one_that_was_sent(observed: Service) -> None:
    recording, client = silence(), observed.client()

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(recording)))
            self.end_headers()
            self.wfile.write(recording)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    before = scrape(client)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/recording"
        assert client.post("/transcribe/url", json={"url": url}).status_code == 200
        server.shutdown()
    after = grown(client, before, 1, REQUESTS, path="/transcribe/url", status="200")
    received = "metalscribe_upload_bytes_sum"
    assert after.value(received, surface="native") - before.value(received, surface="native") == len(recording)


def test_a_refusal_is_counted_by_its_problem(observed: Service) -> None:
    client = observed.client()
    before = scrape(client)
    problem(send(client, b"no sound"), 415)
    after = grown(client, before, 1, REQUESTS, path="/transcribe", status="415")
    counted = "metalscribe_http_problems_total"
    assert after.value(counted, problem="unsupported_media") - before.value(counted, problem="unsupported_media") == 1
    assert after.value("metalscribe_real_time_factor_count") == before.value("metalscribe_real_time_factor_count")


def test_streams_count_to_their_end(observed: Service) -> None:
    """A transcription that is streamed took as long as its stream; who follows events may do so for a day."""
    client = observed.client()
    before = scrape(client)
    assert send(client, silence(), data={"stream": "true"}).headers["content-type"].startswith("text/event-stream")
    grown(client, before, 1, SECONDS, surface="native", **{"class": "2xx"})

    with client.stream("GET", "/model/events") as answer:
        lines = answer.iter_lines()  # kept: who lets go of them hangs up
        next(lines)
        during = scrape(client)
        assert during.value(IN_PROGRESS, surface="model") == 1
        assert during.value(REQUESTS, path="/model/events") == before.value(REQUESTS, path="/model/events")
    after = when(client, lambda one: one.value(IN_PROGRESS, surface="model") == 0, "the follower to be gone")
    assert after.value(REQUESTS, path="/model/events", status="200") == during.value(REQUESTS, path="/model/events") + 1
    assert after.value(SECONDS, surface="model") == during.value(SECONDS, surface="model"), "no latency"


def test_nobody_can_make_up_labels(observed: Service) -> None:
    """A thousand paths are one label: so neither the service's memory nor Prometheus' grows with what strangers try."""
    client = observed.client()
    document = client.get("/openapi.json").json()
    client.get("/docs")
    client.get("/static-offline-docs/favicon.png")

    def hostile(word: str) -> None:
        paths = [
            *(f"/{word}", f"/{word}/{word}", f"//{word}", f"/transcribe/{word}", f"/v1/{word}", f"/asr/{word}"),
            *(
                f"/jobs/{word}",
                f"/jobs/{uuid.uuid4()}/stream",
                f"/jobs/{word}%2Fstream",
                f"/model/{word}",
                f"/docs/{word}",
            ),
            *(f"/static-offline-docs/{word}", f"/static-offline-docs/../{word}", f"/metrics/{word}", f"/%00{word}"),
            *(f"/%ff%fe{word}", f'/"{word}"\\n', f"/{word * 500}", f"/jobs?{word}={word}", f"/{{job_id}}{word}"),
        ]
        for path, method in product(paths, ("GET", word.upper())):
            client.request(method, path, headers={"X-Request-ID": word, "User-Agent": word})
        client.request("PURGE" + word.upper(), "/jobs")

    hostile("once")
    before = when(client, lambda one: one.value(IN_PROGRESS) == 1, "the first round to be over")
    hostile("twice")
    after = when(client, lambda one: one.value(IN_PROGRESS) == 1, "the second round to be over")
    # Between the two only what the service itself numbers may be new.
    assert {series for series in after.samples if series not in before.samples} == set()
    templates = set(document["paths"]) | {"/docs", "/openapi.json", "/static-offline-docs/{path}", "unmatched"}
    assert after.labels(REQUESTS, "path") <= templates
    assert after.labels(REQUESTS, "method") <= {"GET", "POST", "HEAD", "DELETE", "other"}
    assert "twice" not in as_text(client)


def test_keys_are_no_label(observed: Service, reader: httpx.Client) -> None:
    observed.client().get("/jobs")
    scrape(reader)
    text = as_text(reader)
    assert READER not in text
    assert "configured" not in text, "the name of the key in METALSCRIBE_API_KEY"


def test_metrics_are_for_their_scope_and_in_the_format_that_is_asked_for(observed: Service) -> None:
    problem(observed.client(None).get("/metrics"), 401)
    transcriber = observed.client(observed.new_key("transcriber"))
    problem(transcriber.get("/metrics"), 403)
    answer = observed.client().get("/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    assert "# EOF" not in as_text(observed.client())
    assert {name.removesuffix("_total") for name in scrape(observed.client()).names()} >= {
        *("metalscribe_http_requests", "metalscribe_queue_wait_seconds", "metalscribe_gate_verdicts"),
        *("metalscribe_jobs_ended", "metalscribe_webhook_attempts", "metalscribe_gpu_power_watts", "metalscribe"),
    }
    assert transcriber.get("/queue-metrics").status_code == 200, "which any key may read"


def test_the_queue_as_clients_of_whisperx_read_it(observed: Service) -> None:
    loaded(observed.client())
    problem(observed.client(None).get("/queue-metrics"), 401)
    answer = observed.client().get("/queue-metrics", params={"unknown": "to be ignored"})
    document = answer.json()
    assert document["serve_mode"] == "simple"
    assert document["device"] == "cpu"
    assert document["loaded_models"] == ["demo"]
    assert document["queue"] == {
        "requests_queued": 0,
        "requests_in_flight": 0,
        "gpu_concurrency": 32,
        "max_queue_size": 32,
        "chunks_waiting": 0,
        "chunks_running": 0,
        "audio_seconds_waiting": 0,
    }


def test_a_stream_that_waits_is_worked_on_and_fails(observed: Service, long_wav: bytes) -> None:
    """What goes wrong in it is counted, though its status was 200 long before."""
    client = observed.client()
    told: list[str] = []

    def listen() -> None:
        files, data = {"file": ("long.wav", long_wav)}, {"stream": "true"}
        with observed.client().stream("POST", "/transcribe", files=files, data=data) as answer:
            told.extend(answer.iter_lines())

    def queue() -> dict[str, float]:
        found: dict[str, float] = client.get("/queue-metrics").json()["queue"]
        return found

    assert client.post("/model/unload").status_code == 200
    assert client.get("/queue-metrics").json()["loaded_models"] == []
    before = scrape(client)
    listener = threading.Thread(target=listen)
    listener.start()
    wait_for(lambda: queue()["requests_queued"] == 1, "the transcription to wait for the model")
    wait_for(lambda: queue()["requests_in_flight"] == 1 and queue()["chunks_running"], "it to be worked on")
    during = scrape(client)
    assert during.value("metalscribe_interactive_requests") == 1
    assert during.value("metalscribe_interactive_requests_limit") == 32
    assert during.value("whisperx_active_transcriptions") == 1
    assert client.post("/model/unload", params={"force": "true"}).status_code == 200
    listener.join(60)
    assert "event: failed" in told
    grown(client, before, 1, "metalscribe_http_problems_total", problem="model_unloaded", surface="native")
    wait_for(observed.idle, "the work to end")


def test_whisperx_series_are_there_if_wanted(observed: Service, service: Service) -> None:
    assert not [name for name in scrape(service.client()).names() if name.startswith("whisperx")]
    client = observed.client()
    before = scrape(client)
    recording = silence()
    send(client, recording)
    problem(send(client, b"no sound"), 415)
    counted = "whisperx_requests_total"
    after = grown(client, before, 1, counted, endpoint="/transcribe", status="http_415")
    assert after.value(counted, endpoint="/transcribe", status="ok") > before.value(
        counted, endpoint="/transcribe", status="ok"
    )
    assert {name for name in after.names() if name.startswith("whisperx")} == {
        *("whisperx_requests_total", "whisperx_request_duration_seconds", "whisperx_active_transcriptions"),
        *("whisperx_loaded_models", "whisperx_model_evictions_total", "whisperx_audio_duration_seconds"),
        *("whisperx_audio_size_megabytes", "whisperx_vram_allocated_bytes", "whisperx_service"),
    }
    loaded(client)
    assert scrape(client).value("whisperx_loaded_models") == 1
    assert after.value("whisperx_vram_allocated_bytes") == 0, "the model is on the CPU"
    assert ("whisperx_model_evictions_total", frozenset({("model", "demo")})) in after.samples
    assert after.labels("whisperx_service_info", "serve_mode") == {"simple"}
    growth = after.value("whisperx_audio_size_megabytes_sum") - before.value("whisperx_audio_size_megabytes_sum")
    assert growth == pytest.approx((len(recording) + len(b"no sound")) / 2**20)


def test_gpus_are_told_and_a_driver_that_hangs_holds_nobody_up(observed: Service, gpus: Path) -> None:
    client = observed.client()

    def healthy(one: Scrape) -> bool:
        return one.value("metalscribe_gpus") == 2 and one.value("metalscribe_gpu_problem") == 0

    told = when(client, healthy, "two healthy GPUs")
    assert told.value("metalscribe_gpu_temperature_celsius", gpu="0") == 71
    assert told.value("metalscribe_gpu_power_limit_watts", gpu="1") == 350
    assert told.value("metalscribe_gpu_clock_limit", gpu="0", reason="sw_thermal_slowdown") == 1
    assert told.value("metalscribe_gpu_last_xid", gpu="0") == 31
    assert told.value("metalscribe_gpu_driver_answers") == 1
    try:
        # A card that is lost ends the session with the driver; a new one takes longer than anybody waits.
        tell(gpus, GPUS | {"gpu1.lost": "1", "init_ms": "8000"})
        hangs = when(client, lambda one: one.value("metalscribe_gpu_driver_answers") == 0, "the driver to hang")
        assert hangs.value("metalscribe_gpus") == 0
        assert not [name for name in hangs.names() if name.startswith("metalscribe_gpu_temp")], "nothing is made up"
        assert observed.client(None).get("/healthz").status_code == 200
    finally:
        tell(gpus, GPUS)
    when(client, healthy, "the driver to be back")
