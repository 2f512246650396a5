"""Certificates of image hosts are verified, and https stays https."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.image_server import HOST, PUBLIC, ImageServer, image, leads_to
from vlsi_cli.engine.data.addresses import HostRules
from vlsi_cli.engine.data.fetching import WORLD, Failure, FetchLimits, fetch

ANY, LIMITS = HostRules(), FetchLimits(timeout=120, tries=1, max_bytes=100_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=images.example"
    )
    subprocess.run(
        [
            "openssl",
            *words.split(),
            "-addext",
            f"subjectAltName=DNS:{HOST}",
            "-keyout",
            str(key),
            "-out",
            str(cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_certificates_are_verified(certificate: tuple[Path, Path]) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(*certificate)
    with ImageServer(theirs) as server:
        server.pages |= {"/a.png": image(), "/down": leads_to(f"http://{HOST}/a.png")}
        server.names["other.example"] = [PUBLIC]
        trusting = server.network(ssl.create_default_context(cafile=str(certificate[0])))
        assert fetch(f"https://{HOST}/a.png", ANY, LIMITS, trusting) == image()
        assert server.dialled == [(PUBLIC, 443)]
        for host, network in ((HOST, server.network()), ("other.example", trusting)):
            with pytest.raises(Failure, match="certificate is not valid") as caught:
                fetch(f"https://{host}/a.png", ANY, FetchLimits(120, 3, 100_000), network)
            assert not caught.value.momentary
        with pytest.raises(Failure, match="from https to http"):
            fetch(f"https://{HOST}/down", ANY, LIMITS, trusting)
        assert len(server.asked) == 2


def test_the_real_world_verifies() -> None:
    context = WORLD.trust()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert WORLD.look_up("127.0.0.1", 80) == ["127.0.0.1"]
