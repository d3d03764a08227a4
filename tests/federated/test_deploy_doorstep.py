"""A node says in one sentence what it finds at its SuperLink's door: held against Python's own TLS server."""

from __future__ import annotations

import contextlib
import datetime
import logging
import re
import socket
import ssl
import threading

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.supercore.error import ApiErrorCode, FlowerError

from federated.deploy import supernode
from federated.deploy.credentials import create, open_node, renew
from federated.deploy.doorstep import say_refusals, what_is_wrong
from federated.deploy.programs import free_port


@pytest.fixture
def made(tmp_path):
    return create(tmp_path / "d", host="127.0.0.1", port=8000, nodes=1)


@contextlib.contextmanager
def server(deployment, *, tls=True):
    """Something that listens on loopback with the deployment's certificate; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(deployment.superlink / "server.pem", deployment.superlink / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(5)

        def serve():
            with contextlib.suppress(OSError):
                line, _ = door.accept()
                with line:
                    if tls:
                        context.wrap_socket(line, server_side=True).close()
                    else:
                        line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{door.getsockname()[1]}"
    thread.join()


def test_the_right_superlink_is_not_complained_of(made):
    with server(made) as address:
        assert what_is_wrong(address, made.node(0) / "ca.crt") is None


def test_another_authority_is_named(made, tmp_path):
    other = create(tmp_path / "other", host="127.0.0.1", port=8000, nodes=1)
    with server(other) as address:
        assert "not signed by this node's authority" in what_is_wrong(address, made.node(0) / "ca.crt")


def test_an_expired_certificate_and_what_renews_it_are_named(made):
    renew(made.folder, today=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=800))
    with server(made) as address:
        assert "has expired; its operator renews it with 'mmslm deploy renew'" in what_is_wrong(
            address, made.node(0) / "ca.crt"
        )
    renew(made.folder)
    with server(made) as address:
        assert what_is_wrong(address, made.node(0) / "ca.crt") is None


def test_a_clock_that_is_behind_is_named(made):
    renew(made.folder, today=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=9))
    with server(made) as address:
        assert "set this machine's clock" in what_is_wrong(address, made.node(0) / "ca.crt")


def test_a_certificate_for_other_names_is_named(made, monkeypatch):
    real = socket.create_connection
    with server(made) as address:
        port = int(address.rpartition(":")[2])
        monkeypatch.setattr(socket, "create_connection", lambda where, **options: real(("127.0.0.1", port), **options))
        assert "'mmslm deploy renew --name'" in what_is_wrong(f"fleet.example:{port}", made.node(0) / "ca.crt")


def unknown(*where, **options):
    raise socket.gaierror(-2, "Name or service not known")


def test_nobody_and_somebody_else_are_told_apart(made, monkeypatch):
    certificate = made.node(0) / "ca.crt"
    assert "nobody answers" in what_is_wrong(f"127.0.0.1:{free_port()}", certificate)
    with server(made, tls=False) as address:
        assert "speaks no TLS" in what_is_wrong(address, certificate)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", unknown)
        assert "is not known" in what_is_wrong("no-such-host.invalid:8000", certificate)
    certificate.write_text("nothing")
    assert "copy this node's folder again" in what_is_wrong("127.0.0.1:1", certificate)


def test_a_node_waits_and_says_a_thing_once(made, monkeypatch, caplog):
    found = iter(["nobody answers", "nobody answers", "another authority", None])
    monkeypatch.setattr(supernode, "what_is_wrong", lambda superlink, certificate: next(found))
    monkeypatch.setattr(supernode.time, "sleep", lambda seconds: None)
    caplog.set_level(logging.INFO)
    supernode.wait_for_a_welcome("127.0.0.1:1", open_node(made.node(0)))
    assert [re.sub(r".*: ", "", record.message) for record in caplog.records] == [
        "nobody answers",
        "another authority",
        "the SuperLink answers",
    ]


def test_a_key_that_is_not_wanted_is_said_in_words(caplog):
    class Client:
        def ActivateNode(self, request):
            said = FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "no")
            response = httpx.Response(400, json=said.to_json("no"), request=httpx.Request("POST", "https://a"))
            raise httpx.HTTPStatusError("no", request=response.request, response=response)

    say_refusals(Client, 3)
    with pytest.raises(httpx.HTTPStatusError):
        Client().ActivateNode(None)
    assert "does not let node 3 in" in caplog.text


def test_the_renewed_certificate_keeps_its_key_and_its_names(made):
    from cryptography import x509

    before = x509.load_pem_x509_certificate((made.superlink / "server.pem").read_bytes())
    renew(made.folder, ["fleet.example"])
    after = x509.load_pem_x509_certificate((made.superlink / "server.pem").read_bytes())

    def names(certificate):
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)

    assert names(after) == names(before) | {x509.DNSName("fleet.example")}
    spelled = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert after.public_key().public_bytes(*spelled) == before.public_key().public_bytes(*spelled)
    assert after.serial_number != before.serial_number
