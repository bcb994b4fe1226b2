"""`evenhand serve` as it is typed: what it refuses, and one whole life of a server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from evenhand.config.editing import EditMethodConfig, ServeConfig
from evenhand.config.schema import ModelConfig
from evenhand.edits import build_edit, save_edit
from evenhand.models import LocalEmbedder, build_classifier
from evenhand.models.protocol import HEADER, Tensor, decode_response, encode_request, read_header_length
from evenhand.serve import run
from evenhand.serve.encoder import load_served_model

Refused = Callable[..., str]


@pytest.fixture
def edit_file(tmp_path: Path) -> Callable[..., Path]:
    """Function: grid and facts -> an edit in a file."""

    def make(grid: tuple[int, int, int] = (3, 64, 64), **facts: Any) -> Path:
        edit = build_edit(EditMethodConfig(name="dne", family=["tone"]), grid)
        edit.load_vector(edit.vector() + 3 * edit.natural_steps())
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        path.write_bytes(save_edit(edit, facts))
        return path

    return make


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither arrived"), (["model=evenhand_demo_vit", "upstream=http://x"], "both arrived"), (["upstream=http://x"], "needs edit="),
        (["upstream=x", "edit=e"], "not an address"), (["upstream=http://x/?key=1", "edit=e"], "a query"),
        (["upstream=http://x", "edit=e", "upstream_api=vertex"], "upstream_api"),
        (["upstream=http://x", "edit=e", "upstream_api=cxr_foundation", "name=a"], "not name="),
        (["model=evenhand_demo_vit", "upstream_api=medimageinsight"], "give upstream="),
        (["model=evenhand_demo_vit", "port=70000"], "0 to 65535"),
        (["model=evenhand_demo_vit", "port=-1"], "port"), (["model=evenhand_demo_vit", "certificate=c.pem"], "belong together"),
        (["model=evenhand_demo_vit", "certificate=c.pem", "key=k.pem"], "no such file"),
        (["model=evenhand_demo_vit", "require_token=true"], "EVENHAND_TOKEN is not set"),
        (["model=nothing/here.pth", "port=0"], "no such path"),
        (["model=http://server", "port=0"], "upstream="), (["model=evenhand_demo_vit", "port=0", "name=a/b"], "address"),
        (["model=evenhand_demo_vit", "port=0", "grid=64"], "grid=[224,224]"),
        (["model=evenhand_demo_vit", "host=no.such.host.invalid"], "host="),
        (["upstream=http://x", "edit=nothing.safetensors", "port=0"], "cannot be read"), (["modle=x"], "unknown option"),
    ],
    ids=lambda value: "_".join(value).replace("/", ".") if isinstance(value, list) else "",
)
def test_what_contradicts_itself_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.delenv("EVENHAND_TOKEN", raising=False)
    assert said in refused(2, "serve", *words)


def test_a_port_in_use(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in refused(4, "serve", "model=evenhand_demo_vit", f"port={taken.getsockname()[1]}")


def test_a_certificate_that_is_none(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("no")
    assert "cannot be used" in refused(
        2, "serve", "model=evenhand_demo_vit", "port=0", f"certificate={tmp_path / 'c.pem'}", f"key={tmp_path / 'c.pem'}"
    )


def test_an_edit_for_another_grid_or_encoder(refused: Refused, edit_file: Callable[..., Path]) -> None:
    model = ("serve", "model=evenhand_demo_vit", "port=0")
    assert "trained against" in refused(2, *model, f"edit={edit_file(encoder='0' * 64)}")
    assert "grid is 32 x 32" in refused(2, *model, f"edit={edit_file()}", "grid=[32,32]")


def test_an_upstream_token_is_not_lent_to_everybody(
    refused: Refused, edit_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENHAND_TOKEN", raising=False)
    monkeypatch.setenv("EVENHAND_UPSTREAM_TOKEN", "paid")
    text = refused(2, "serve", "upstream=http://127.0.0.1:9", f"edit={edit_file()}", "host=0.0.0.0", "port=0")
    assert "lent to everybody" in text
    assert "paid" not in text


def test_a_proxy_of_a_service_is_what_upstream_api_asks_for(edit_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from evenhand.serve.vendor_proxy import VendorProxyApp

    monkeypatch.setenv("EVENHAND_UPSTREAM_TOKEN", "paid")
    config = ServeConfig(upstream="http://127.0.0.1:9/score", upstream_api="medimageinsight", edit=str(edit_file()))
    run.check_options(config)
    service, what = run._service(config, run.limits_of(config))
    assert isinstance(service, VendorProxyApp)
    assert (service.vendor.ending, what.endswith("for http://127.0.0.1:9/score")) == ("/score", True)
    service.close()


def test_without_the_extra_it_says_how_to_get_it(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'evenhand[serve]'" in refused(4, "serve", "model=evenhand_demo_vit")


def test_the_token_is_asked_for_wherever_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENHAND_TOKEN", "secret")
    limits = run.limits_of(ServeConfig(model="x"))
    assert limits.token == "secret"
    assert "secret" not in repr(limits)


def test_a_model_with_an_edit_says_and_does_both(edit_file: Callable[..., Path]) -> None:
    from evenhand.edits import load_edit

    embedder = LocalEmbedder(build_classifier(ModelConfig(), 0, 0), "fp32")
    path = edit_file((3, 32, 32), encoder=embedder.fingerprint)
    plain = load_served_model(ServeConfig(model="evenhand_demo_vit", accelerator="cpu"))
    model = load_served_model(ServeConfig(model="evenhand_demo_vit", edit=str(path), name="edited", accelerator="cpu"))
    assert (model.name, model.grid.shape, model.dim) == ("edited", (3, 32, 32), 128)
    assert model.parameters["edit"] == load_edit(path).fingerprint
    assert model.parameters["encoder"] == plain.parameters["fingerprint"] == embedder.fingerprint
    assert model.parameters["fingerprint"] != embedder.fingerprint
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = embedder(load_edit(path).edit(images))
    np.testing.assert_allclose(model.embed(images), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(model.embed(images) - plain.embed(images)).max() > 1e-3


def test_weights_that_do_not_say_what_they_are(refused: Refused, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from evenhand.models.mobilenet import mobilenetv1_075

    path = tmp_path / "weights.safetensors"
    save_file(mobilenetv1_075(num_classes=0).state_dict(), path)
    assert "set architecture=" in refused(2, "serve", f"model={path}", "port=0")
    model = load_served_model(ServeConfig(model=str(path), architecture="mobilenetv1_075", grid=[32, 32], accelerator="cpu"))
    assert (model.name, model.dim, model.grid.shape) == ("mobilenetv1_075", 768, (3, 32, 32))


def test_a_run_serves_its_encoder(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_served_model(ServeConfig(model=str(probe), accelerator="cpu"))
    assert model.grid.shape == (3, 32, 32)
    assert model.embed(torch.rand(2, 3, 32, 32)).shape == (2, model.dim)


def test_a_whole_life(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EVENHAND_TOKEN": "secret"}
    words = ["serve", "model=evenhand_demo_vit", "port=0", "threads=1", "accelerator=cpu", "require_token=true"]
    process = subprocess.Popen([sys.executable, "-m", "evenhand", *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("evenhand serve: evenhand_demo_vit (3 x 64 x 64 -> 128) at http://127.0.0.1:")
        images = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
        message = encode_request([Tensor("images", images)])
        headers = {**message.headers, "Authorization": "Bearer secret"}
        address = line.split()[-1] + "/v2/models/evenhand_demo_vit/infer"
        answer = httpx2.post(address, content=message.join(), headers=headers, timeout=None)
        got = decode_response(answer.content, read_header_length(answer.headers.get(HEADER), len(answer.content))).outputs[0].data
        assert httpx2.post(address, content=message.join(), headers=message.headers, timeout=None).status_code == 401
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert rest == ""
    expected = LocalEmbedder(build_classifier(ModelConfig(), 0, 0), "fp32")(torch.from_numpy(images))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [], "a server keeps nothing"
