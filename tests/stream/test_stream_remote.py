import http.server
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest

from lmscale.config.data import plan_batches
from lmscale.errors import ConfigError, DataError, LmscaleError, TransientError
from lmscale.files import remote
from lmscale.files.locations import join_location
from lmscale.files.remote import TransferError, with_retries
from lmscale.objective.causal import CausalPreparation
from lmscale.stream.loader import digest_steps
from lmscale.stream.stream import open_datasets, open_stream

PREPARATION = CausalPreparation(mask_documents=True)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.001)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the first ``failures`` requests for a shard get a 503 or half of it.

    Or requests for any name that ends in ``failing``, but not for ``spared``.
    """

    log: list[str] = []
    failures = 0
    cut = False
    failing = ".tar"
    spared = ""

    def do_GET(self):  # noqa: N802
        type(self).log.append(self.path)
        if self.path.endswith(self.failing) and self.path != self.spared and self.failures > 0:
            type(self).failures -= 1
            if not self.cut:
                return self.send_error(503)
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) // 2))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return None
        return super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(data):
    handler = type("FreshHandler", (Handler,), {"log": []})
    bound = partial(handler, directory=str(data))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", handler
        running.shutdown()
        thread.join()


@pytest.fixture
def remote_config(stream_config):
    def build(location, **settings):
        config = stream_config(a=1, settings=settings)
        source = config.sources["a"].model_copy(update={"shards": location})
        return config.model_copy(update={"sources": {"a": source}})

    return build


def digests(config, workers=0):
    plan = plan_batches(global_windows=8, micro_windows=8, data_ranks=1)
    with open_stream(config, seed=1) as stream:
        return digest_steps(
            stream, plan, preparation=PREPARATION, first_step=0, num_steps=30, workers=workers
        )


def shards_in(folder):
    return sorted(path for path in Path(folder).iterdir() if path.name.endswith(".tar"))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_http_gives_what_the_folder_gives_and_fetches_each_shard_once(
    server, remote_config, data, packing
):
    url, handler = server
    expected = digests(remote_config(str(data / "a"), packing=packing))
    config = remote_config(f"{url}/a", packing=packing)
    assert digests(config) == expected
    assert digests(config, workers=2) == expected
    fetched = [path for path in handler.log if path.endswith(".tar")]
    assert sorted(fetched) == sorted({f"/a/x-00000{n}.tar" for n in range(5)})


@pytest.mark.parametrize("cut", [False, True])
def test_a_server_that_fails_or_cuts_is_asked_again(server, remote_config, data, cut):
    url, handler = server
    handler.failures, handler.cut = 1, cut
    assert digests(remote_config(f"{url}/a")) == digests(remote_config(str(data / "a")))


def test_a_server_that_keeps_failing_is_an_error_naming_the_url(server, remote_config):
    url, handler = server
    handler.failures = 1000
    message = rf"{url}/a/x-\d+.tar: could not be read \(tried 2 times\)"
    with pytest.raises(TransientError, match=message):
        digests(remote_config(f"{url}/a"))


def test_a_server_that_is_not_there_is_an_error_naming_the_url(remote_config):
    with pytest.raises(TransientError) as caught:
        digests(remote_config("http://127.0.0.1:9/a"))
    assert "http://127.0.0.1:9/a/manifest.json: could not be read (tried 2 times)" in str(
        caught.value
    )
    assert "Check the network and the endpoint" in str(caught.value)


def test_counts_that_cannot_be_reached_are_an_error_and_not_missing(server, remote_config, data):
    url, handler = server
    digests(remote_config(str(data / "a"), packing="best_fit"))  # leaves the counts in the folder
    handler.failures, handler.failing = 1000, ".json"
    handler.spared = "/a/manifest.json"
    message = r"windows-best_fit-32.json: could not be read \(tried 2"
    with pytest.raises(TransientError, match=message):
        digests(remote_config(f"{url}/a", packing="best_fit"))


def test_a_missing_remote_shard_is_not_asked_for_again(
    server, remote_config, data, tmp_path, write_dataset, documents
):
    url, handler = server
    folder = write_dataset(data / "gone", documents(60, seed=1))
    (folder / "x-000001.tar").unlink()
    with pytest.raises(DataError, match=f"{url}/gone/x-000001.tar: there is no such file"):
        digests(remote_config(f"{url}/gone"))


def test_a_damaged_remote_shard_never_enters_the_cache(
    server, remote_config, data, write_dataset, documents
):
    url, _ = server
    folder = write_dataset(data / "bad", documents(20, seed=1))
    path = folder / "x-000000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    config = remote_config(f"{url}/bad")
    with pytest.raises(DataError, match=r"its sha256 is .* the remote file is damaged"):
        digests(config)
    assert shards_in(config.cache.folder) == []


def test_shards_of_one_name_in_two_places_are_two_files(server, remote_config, data):
    url, _ = server
    for name in ("a", "b"):
        expected = digests(remote_config(str(data / name)))
        assert digests(remote_config(f"{url}/{name}")) == expected


def test_memory_is_read_in_the_process_that_has_it(remote_config, data):
    memory = fsspec.filesystem("memory")
    for path in (data / "a").iterdir():
        memory.pipe(f"/lmscale-test/a/{path.name}", path.read_bytes())
    expected = digests(remote_config(str(data / "a")))
    assert digests(remote_config("memory://lmscale-test/a"), workers=2) == expected


@pytest.fixture(scope="module")
def s3(data):
    """A real S3 server on loopback with dataset a in s3://texts/en/a."""
    moto_server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    client = boto3.client("s3")
    client.create_bucket(Bucket="texts")
    for path in (data / "a").iterdir():
        client.upload_file(str(path), "texts", f"en/a/{path.name}")
    client.close()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    running.stop()
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.update({key: value})


# botocore and aiobotocore leave sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3_gives_what_the_folder_gives(s3, remote_config, data):
    expected = digests(remote_config(str(data / "a")))
    config = remote_config("s3://texts/en/a")
    assert digests(config) == expected
    assert len(shards_in(config.cache.folder)) == 5
    assert digests(remote_config("s3://texts/en/a"), workers=1) == expected
    with pytest.raises(DataError, match="s3://texts/fr/manifest.json: there is no such file"):
        digests(remote_config("s3://texts/fr"))


def test_processes_of_a_node_download_each_shard_once(server, remote_config, tmp_path):
    url, handler = server
    config = remote_config(f"{url}/a")
    program = """
import sys
from lmscale.config.data import StreamConfig
from lmscale.stream.stream import open_stream
with open_stream(StreamConfig.model_validate_json(sys.argv[1]), seed=1) as stream:
    print(stream.read_rows(0, 200).digests.sum())
"""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, config.model_dump_json()], stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    sums = {rank.communicate()[0] for rank in ranks}
    assert len(sums) == 1 and sums != {b""}
    fetched = [path for path in handler.log if path.endswith(".tar")]
    assert len(fetched) == len(set(fetched)) == 5


def test_unknown_and_uninstalled_protocols_are_named(remote_config):
    with pytest.raises(DataError, match="nfs://x/manifest.json: unknown kind of URL"):
        digests(remote_config("nfs://x"))


def test_retries_wait_longer_each_time_and_at_random(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.5)
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: high)
    waits, attempts = [], []
    monkeypatch.setattr(remote.time, "sleep", waits.append)

    def fail():
        attempts.append(1)
        raise ConnectionError("reset by peer")

    with pytest.raises(TransientError, match=r"tried 9 times\): ConnectionError: reset by peer"):
        with_retries(fail, url="s3://x", retries=8)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(attempts) == 9


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ConfigError("x")])
def test_what_waiting_cannot_mend_is_not_tried_again(error):
    attempts = []

    def fail():
        attempts.append(1)
        raise error

    with pytest.raises((DataError, ConfigError)):
        with_retries(fail, url="s3://x", retries=8)
    assert len(attempts) == 1


class RefusedError(Exception):
    """As aiohttp's, with the server's answer."""

    def __init__(self, status):
        self.status = status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError("reset"), 1),
        (RefusedError(500), 1),
        (RefusedError(429), 1),
        (RefusedError(403), 2),
        (TransferError("another hash"), 2),
    ],
)
def test_what_the_last_attempt_says_decides_whether_another_start_may_mend_it(error, code):
    def fail():
        raise error

    with pytest.raises(LmscaleError, match="s3://x: (could not be read|access is)") as caught:
        with_retries(fail, url="s3://x", retries=1)
    assert caught.value.exit_code == code


def test_a_mistake_in_one_source_counts_more_than_another_that_is_not_reached(remote_config, data):
    nothing = "http://127.0.0.1:9/a"
    with pytest.raises(DataError) as caught:
        open_datasets(remote_config(nothing), {"far": nothing, "near": str(data / "none")})
    assert "could not be read" in str(caught.value) and "no dataset here" in str(caught.value)


def test_an_action_that_succeeds_later_gives_its_result():
    answers = iter([TransferError("short"), OSError("reset"), 7])

    def action():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_retries(action, url="s3://x", retries=2) == 7


def test_names_are_joined_before_a_urls_query():
    assert join_location("s3://b/x/", "m.json") == "s3://b/x/m.json"
    assert join_location("https://h/x?sig=1", "m.json") == "https://h/x/m.json?sig=1"
    assert join_location("file:///x/y", "m.json") == "/x/y/m.json"
