"""A hub that redirects, lies or is broken ends in one sentence, and changes nothing elsewhere."""

import pathlib

import huggingface_hub
import pytest

from densenet_jax import load_pretrained, weights
from tests import hub_server

SHA256 = "a" * 64
ROOT = "/tmp/densenet_jax_hostile_hub"  # must not appear
KINDS = {
    "redirects for ever": (302, lambda hub: {"Location": hub.path}, b""),
    "redirects to a file": (302, lambda hub: {"Location": "file:///etc/passwd"}, b""),
    "redirects to nobody": (302, lambda hub: {"Location": "http://127.0.0.1:9/x"}, b""),
    "redirects to another protocol": (302, lambda hub: {"Location": "ftp://127.0.0.1/x"}, b""),
    "wants a log-in": (401, lambda hub: {}, b""),
    "is no hub": (200, lambda hub: {}, b"<html>"),
    "sends other content": (
        *(200, lambda hub: {"X-Repo-Commit": hub_server.COMMIT, "ETag": f'"{SHA256}"'}),
        b"{}",
    ),
    "names a file elsewhere": (
        *(200, lambda hub: {"X-Repo-Commit": hub_server.COMMIT, "ETag": '"../../../../out"'}),
        b"{}",
    ),
    "names a file at the root": (
        200,
        lambda hub: {"X-Repo-Commit": "a", "ETag": '"b"', "X-Linked-ETag": f'"{ROOT}/out"'},
        b"{}",
    ),
    "names a folder elsewhere": (
        *(200, lambda hub: {"X-Repo-Commit": "../../../../out", "ETag": f'"{SHA256}"'}),
        b"{}",
    ),
    "names the folder above": (
        *(404, lambda hub: {"X-Repo-Commit": "..", "X-Error-Code": "EntryNotFound"}),
        b"",
    ),
    "sends control characters": (
        *(404, lambda hub: {"X-Error-Code": "RepoNotFound", "X-Error-Message": "\x1b[31m"}),
        b"",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_hub(tmp_path, monkeypatch, kind):
    status, headers, content = KINDS[kind]
    monkeypatch.setenv("DENSENET_JAX_CACHE", str(tmp_path / "placed"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with hub_server.serve(tmp_path, "someone/small") as (hub, address):
        hub_server.point_client_to(address, monkeypatch)
        hub._file = lambda self, body: self._send(status, headers(self), content)
        with pytest.raises(weights.WeightsError, match=r"someone/small|SHA-256") as caught:
            load_pretrained("hf-hub:someone/small")
    assert str(caught.value).isprintable()
    assert {path.name for path in tmp_path.iterdir()} <= {"hub", "placed"}
    assert not pathlib.Path(ROOT).exists()
