"""The serving example on a real port: responses, batches, and rejected requests."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densenet_jax import export
from densenet_jax.report import cam
from tests.export.conftest import make_bundle
from tests.fuzzing import fuzz

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "serve"


@pytest.fixture(scope="module")
def example():
    """The modules of the example, which is a folder of scripts rather than a package."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import engines
        import server

        yield server, engines
    finally:
        sys.path.remove(str(EXAMPLE))


@contextlib.contextmanager
def running(app):
    """Serves an application on a free port; yields the port."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield port
    finally:
        server.should_exit = True
        thread.join()


def ask(port, body, path="/predict", headers=None):
    """Returns the status and the JSON of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET" if path == "/health" else "POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, bundle = tmp_path_factory.mktemp("served"), make_bundle("cifar")
    for format in ("onnx", "stablehlo"):
        path = folder / f"{format}.{format}"
        export.export(bundle, format, path, preprocess=True)
    return folder


@pytest.fixture(scope="module")
def port(example, files):
    server, engines = example
    app = server.create_app(engines.load(str(files / "onnx.onnx"), 8), max_batch=8, delay=0.05)
    with running(app) as port:
        yield port


@pytest.fixture(scope="module")
def image():
    return png(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def test_single_and_concurrent_requests_get_the_same_classes(port, image):
    status, alone = ask(port, image)
    assert status == 200
    best = alone["predictions"]
    assert [p["label"] for p in best] == [f"class {p['class']}" for p in best]
    assert len(best) == 5
    assert best[0]["probability"] == max(p["probability"] for p in best)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(lambda _: ask(port, image), range(24)))
    for status, answer in crowd:
        assert status == 200
        for found, expected in zip(answer["predictions"], best, strict=True):
            assert found["class"] == expected["class"]
            assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)


def bomb() -> bytes:
    """Returns a PNG of a few kilobytes that declares 10,000 x 10,000 pixels."""
    return png(np.zeros((1, 1), np.uint8)).replace(
        b"\0\0\0\1\0\0\0\1\x08", b"\0\0\x27\x10\0\0\x27\x10\x08"
    )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "The body is empty"),
        (b"GIF89a but no image", 415, "not a readable image"),
        (b"%PDF-1.7 " * 100, 415, "not a readable image"),
        (bytes(10_485_761), 413, "more than 10,485,760 bytes"),
    ],
)
def test_bad_uploads_are_rejected_with_a_reason(port, body, status, words):
    found, answer = ask(port, body)
    assert (found, words in answer["detail"]) == (status, True), answer
    assert "Traceback" not in answer["detail"]


def test_the_server_survives_decompression_bombs_and_truncated_images(port, image):
    status, answer = ask(port, bomb())
    assert status in (413, 415)  # too many pixels or, because of its checksum, not an image
    big = png(np.zeros((5001, 5000), np.uint8))
    status, answer = ask(port, big)
    assert (status, "5000 x 5001 pixels" in answer["detail"]) == (413, True)
    assert ask(port, image[: len(image) // 2])[0] == 415
    assert ask(port, image)[0] == 200
    assert ask(port, None, "/health")[1] == {"status": "ok", "model": "densenet_cifar", "held": 0}


def form(image: bytes, name: bytes = b'filename="a.png"') -> bytes:
    field = b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    head = b'--x\r\nContent-Disposition: form-data; name="file"; ' + name
    return field + head + b"\r\nContent-Type: image/png\r\n\r\n" + image + b"\r\n--x--\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("name", [b'filename="a.png"', b"filename*=UTF-8''%e2%82%ac.png"])
def test_a_form_gives_the_same_answer_as_its_file(port, image, name):
    assert ask(port, form(image, name), headers=FORM) == ask(port, image)
    tricky = image + b"\r\n--y\r\n\r\n--" + bytes(range(256))  # nothing in a file separates
    assert ask(port, form(tricky, name), headers=FORM)[0] == 200


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(b"")[:-4], FORM["Content-Type"]),  # without its end
        (form(b"x", b""), FORM["Content-Type"]),  # a field without a file
        (form(b""), FORM["Content-Type"]),
        (b"--x\r\n\r\n" * 100 + b"--x--", FORM["Content-Type"]),
        (b"--x\r\n" + b"a" * 5000 + b"\r\n\r\nb\r\n--x--", FORM["Content-Type"]),
        (b"\0\xff", FORM["Content-Type"]),
        (form(b"x"), "multipart/form-data"),
        (form(b"x"), f"multipart/form-data; boundary={'y' * 71}"),
    ],
)
def test_damaged_forms_are_rejected_with_a_reason(port, body, kind):
    status, answer = ask(port, body, headers={"Content-Type": kind})
    assert (status, "form" in answer["detail"] or "empty" in answer["detail"]) == (400, True)


def test_a_body_that_comes_slowly_is_cut_off_and_does_not_block(example, files, image, monkeypatch):
    server, engines = example
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.2)
    engine = engines.load(str(files / "onnx.onnx"), 8)
    with running(server.create_app(engine, limit=2, decoders=1)) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(2)]
        for client in slow:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na")
        for client in slow:
            assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
            client.close()
        assert ask(port, image)[0] == 200


def test_a_client_that_goes_leaves_no_traceback(port, image, caplog):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na")
    assert ask(port, image)[0] == 200
    assert not caplog.records


def test_an_image_that_takes_too_long_ends_its_process_only(example, files, image):
    server, engines = example
    engine = engines.load(str(files / "onnx.onnx"), 8)
    app = server.create_app(engine, decoders=1, decode_seconds=1)
    with running(app) as port:
        (decoder,) = app.state.decode.processes
        os.kill(decoder.pid, signal.SIGSTOP)  # as one that is decoding for ever
        status, answer = ask(port, image)
        assert (status, "within 1 s" in answer["detail"]) == (422, True)
        assert ask(port, image)[0] == 200
        os.kill(decoder.pid, signal.SIGKILL)  # as the system does without memory
        while decoder.alive:
            time.sleep(0.01)
        assert ask(port, image)[0] == 200
    assert not decoder.alive


def test_the_page_is_self_contained_and_the_form_is_documented(port):
    def get(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
            return response.read().decode(), response.headers

    page, headers = get("/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    schema = json.loads(get("/openapi.json")[0])["paths"]["/predict"]["post"]
    assert schema["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["file"]
    assert {"400", "408", "413", "415", "422", "503"} <= schema["responses"].keys()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_image_can_be_shown(example, dtype, channels):
    server, _ = example
    ramp = np.arange(0, 256, 17, dtype=dtype).reshape(4, 4, 1).repeat(channels, 2)
    scaled = ramp if dtype == np.uint8 else ramp * dtype(3)
    shown = Image.open(io.BytesIO(base64.b64decode(server._data_uri(scaled).partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(shown).reshape(4, 4, -1)[..., 0], ramp[..., 0])


def test_the_map_of_an_image_is_that_of_the_report(example, files, port, image):
    _, engines = example
    status, answer = ask(port, image, "/predict?cam=true")
    assert status == 200
    assert answer["crop"].startswith("data:image/png;base64,")
    assert answer["predictions"] == ask(port, image)[1]["predictions"]
    bundle = make_bundle("cifar")
    crop = Image.open(io.BytesIO(base64.b64decode(answer["crop"].partition(",")[2])))
    pixels = np.asarray(crop).reshape(1, *bundle.image_shape)
    given = bundle.preprocessing
    normalized = (pixels / np.float32(255) - np.float32(given.mean)) / np.float32(given.std)
    best = np.array([answer["predictions"][0]["class"]])
    expected = cam(bundle.model, bundle.variables, jnp.asarray(normalized), best)[0].clip(0)
    np.testing.assert_allclose(answer["cam"], expected / expected.max(), atol=1e-4)
    assert engines.load(str(files / "stablehlo.stablehlo"), 1).cam is None


PIECES = (
    *(
        b"POST /predict HTTP/1.1",
        b"GET / HTTP/1.1",
        b"\r\n",
        b"Host: x",
        b"--x",
        b"--x--",
        b"\r\n\r\n",
    ),
    *(
        b"Content-Length: 20",
        b"Content-Length: -1",
        b"Transfer-Encoding: chunked",
        b"5\r\n",
        b"0\r\n",
    ),
    *(b"Content-Type: multipart/form-data; boundary=x", b"Expect: 100-continue", b"?cam=maybe"),
    *(
        b'Content-Disposition: form-data; filename="a"',
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
    ),
)


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)), max_size=14))
@fuzz(60)
def test_any_request_gets_an_answer_that_is_not_a_fault(port, pieces):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        with contextlib.suppress(OSError):  # it may be closed at the first wrong byte
            client.sendall(head + b"".join(pieces))
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = client.recv(4096)
    assert not answer or re.match(rb"HTTP/1\.1 [1-4]\d\d ", answer), answer


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=30)), max_size=20))
@fuzz(300)
def test_any_form_has_a_file_or_a_fault_with_a_reason(example, pieces):
    import forms

    with contextlib.suppress(forms.FormError):
        assert isinstance(forms.file_of(b"".join(pieces), b"x"), bytes)
    with contextlib.suppress(forms.FormError):
        forms.boundary(b"".join(pieces).decode("latin-1"))


def test_an_endless_body_is_cut_off(port):
    """A chunked body has no declared length; reading stops at the limit."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_full_server_rejects_requests_at_once(example, files, image):
    server, engines = example
    engine = engines.load(str(files / "onnx.onnx"), 8)
    gate, run = threading.Event(), engine.run

    def slow(images):
        gate.wait(30)
        return run(images)

    engine = engines.Engine(slow, engine.spec)
    with (
        running(server.create_app(engine, max_batch=2, limit=3)) as port,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        held = [pool.submit(ask, port, image) for _ in range(3)]
        while ask(port, None, "/health")[1]["held"] < 3:
            time.sleep(0.01)
        status, answer = ask(port, image)
        assert (status, "busy" in answer["detail"]) == (503, True)
        gate.set()
        assert [future.result()[0] for future in held] == [200, 200, 200]


def test_stablehlo_gives_the_same_results_as_onnx(example, files):
    _, engines = example
    pixels = np.random.default_rng(1).integers(0, 256, (3, 9, 9, 3), np.uint8)
    onnx, stablehlo = (engines.load(str(files / f"{f}.{f}"), 4) for f in ("onnx", "stablehlo"))
    np.testing.assert_allclose(onnx.run(pixels), stablehlo.run(pixels), atol=1e-5)


def test_a_model_exported_without_preprocessing_is_refused(example, tmp_path):
    _, engines = example
    export.export(make_bundle("cifar"), "onnx", tmp_path / "net.onnx")
    with pytest.raises(engines.EngineError, match="export a classifier with --preprocess"):
        engines.load(str(tmp_path / "net.onnx"), 8)
    with pytest.raises(engines.EngineError, match="no such file"):
        engines.load(str(tmp_path / "other.onnx"), 8)
