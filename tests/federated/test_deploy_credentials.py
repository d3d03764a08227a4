"""A deployment's folder: certificates that TLS accepts, secrets that only their owner reads, nothing overwritten."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from federated.deploy.certificates import DeploymentError
from federated.deploy.credentials import (
    check_secret,
    create,
    days_left,
    open_deployment,
    open_node,
    private_folder,
    renew,
)
from federated.deploy.foreground import require_free
from federated.secure_aggregation.keys import KeysOnDisk


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return create(
        tmp_path_factory.mktemp("deploy") / "d", host="192.0.2.7", port=8000, nodes=2, names=["fleet.example"]
    )


def handshake(deployment, authority, name):
    """The server's certificate as Python's own TLS sees it, or its error."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(deployment.superlink / "server.pem", deployment.superlink / "server.key")
    client = ssl.create_default_context(cafile=str(authority))
    ours, theirs = socket.socketpair()

    def serve():
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as connection:
            return connection.version()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["192.0.2.7", "fleet.example", "127.0.0.1", "localhost"])
def test_tls_accepts_the_certificate_for_each_of_its_names(made, name):
    assert handshake(made, made.superlink / "ca.crt", name) == "TLSv1.3"


def test_tls_refuses_another_name_and_another_authority(made, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, made.superlink / "ca.crt", "192.0.2.8")
    other = create(tmp_path / "other", host="192.0.2.7", port=8000, nodes=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, other.superlink / "ca.crt", "192.0.2.7")


def test_the_servers_certificate_cannot_sign_others(made):
    server = x509.load_pem_x509_certificate((made.superlink / "server.pem").read_bytes())
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("192.0.2.7") in names.get_values_for_type(x509.IPAddress)


def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        made = create(tmp_path / "d", host="127.0.0.1", port=1, nodes=1)
    finally:
        os.umask(before)
    for path in [made.folder, *made.folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        else:
            assert mode == (0o600 if path.suffix == ".key" or path.name == "identity.pem" else 0o644), path


def test_each_node_has_a_key_of_its_own_that_matches_the_registered_one(made):
    keys = []
    for number in range(2):
        private = load_ssh_private_key((made.node(number) / "node.key").read_bytes(), None)
        public = load_ssh_public_key(made.public_keys()[number].read_bytes())
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        keys.append(private.private_numbers().private_value)
    assert len(set(keys)) == 2


def test_a_nodes_folder_is_enough_for_its_machine(made, tmp_path):
    shutil.copytree(made.node(1), tmp_path / "mine")
    node = open_node(tmp_path / "mine")
    assert (node.number, node.nodes, node.superlink) == (1, 2, "192.0.2.7:8000")
    assert node.certificate.is_file()


def test_a_folder_that_holds_anything_is_left_as_it_is(made):
    before = (made.superlink / "server.key").read_bytes()
    with pytest.raises(DeploymentError, match="not empty"):
        create(made.folder, host="127.0.0.1", port=8000, nodes=1)
    assert (made.superlink / "server.key").read_bytes() == before
    assert open_deployment(made.folder).nodes == 2


@pytest.mark.parametrize("host", ["https://a.example", "a.example:8000", "", "300.1.2.3", "a b", "-x.example"])
def test_what_is_no_host_is_refused_before_anything_is_written(tmp_path, host):
    with pytest.raises(DeploymentError, match="neither an address nor a host name"):
        create(tmp_path / "d", host=host, port=8000, nodes=1)
    assert not (tmp_path / "d").exists()


def test_a_key_that_others_can_read_is_refused(tmp_path):
    made = create(tmp_path / "d", host="127.0.0.1", port=1, nodes=1)
    (made.node(0) / "node.key").chmod(0o644)
    with pytest.raises(DeploymentError, match="chmod 600"):
        open_node(made.node(0))
    (made.superlink / "server.key").chmod(0o640)
    with pytest.raises(DeploymentError, match="can be read by others"):
        open_deployment(made.folder)
    with pytest.raises(DeploymentError, match="nodes 0 to 0"):
        made.node(1)
    with pytest.raises(DeploymentError, match="not there"):
        open_deployment(tmp_path)


def test_each_node_can_sign_in_secure_sums_and_knows_everybody(made, tmp_path):
    shutil.copytree(made.node(1), tmp_path / "mine")  # as on its own machine
    mine, other = open_node(tmp_path / "mine"), open_node(made.node(0))
    keys = KeysOnDisk(mine.identity, mine.directory)
    assert keys.public([0, 1])[1] == keys.identity(1).public
    assert keys.public([0]) == KeysOnDisk(other.identity, other.directory).public([0])
    with pytest.raises(ValueError, match="another key for device 0"):
        keys.identity(0)
    assert not list((made.folder / "nodes").glob("*.pem"))  # no key lies anywhere but in its node's folder
    (tmp_path / "mine" / "identity.pem").chmod(0o640)
    with pytest.raises(DeploymentError, match="chmod 600"):
        open_node(tmp_path / "mine")


def test_an_expired_certificate_is_refused_and_renewed(tmp_path):
    made = create(tmp_path / "d", host="192.0.2.7", port=8000, nodes=1)
    assert days_left(made) == 729
    now = datetime.datetime.now(datetime.UTC)
    with pytest.raises(DeploymentError, match=r"expired on .*mmslm deploy renew"):
        days_left(made, now + datetime.timedelta(days=731))
    with pytest.raises(DeploymentError, match=r"authority's certificate .* expired"):
        days_left(made, now + datetime.timedelta(days=3651))
    renew(made.folder, today=now + datetime.timedelta(days=700))
    assert days_left(made, now + datetime.timedelta(days=731)) == 698
    assert open_deployment(made.folder) == made
    for name in ("192.0.2.7", "localhost"):
        renew(made.folder)
        assert handshake(made, made.superlink / "ca.crt", name) == "TLSv1.3"


def test_certificates_that_do_not_belong_together_are_refused(made, tmp_path):
    one, other = (create(tmp_path / name, host="127.0.0.1", port=1, nodes=1) for name in "ab")
    shutil.copy(other.superlink / "server.pem", one.superlink / "server.pem")
    with pytest.raises(DeploymentError, match="not signed by the authority"):
        days_left(one)
    with pytest.raises(DeploymentError, match="not signed by the authority"):
        renew(one.folder)
    shutil.copy(one.folder / "authority" / "ca.key", other.folder / "authority" / "ca.key")
    with pytest.raises(DeploymentError, match="not the key of"):
        renew(other.folder)
    (other.folder / "authority" / "ca.key").unlink()
    with pytest.raises(DeploymentError, match="put the authority's key back"):
        renew(other.folder)


def test_a_folder_for_private_things_is_its_owners_alone(tmp_path):
    made = private_folder(tmp_path / "a" / "store")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o750)
    with pytest.raises(DeploymentError, match="chmod 700"):
        private_folder(made)
    (tmp_path / "file").touch()
    with pytest.raises(DeploymentError, match="cannot be made a folder"):
        private_folder(tmp_path / "file")
    with pytest.raises(DeploymentError, match="is missing"):
        check_secret(tmp_path / "no.key")


def test_a_port_that_is_taken_is_said_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeploymentError, match="another program listens there"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)
    with pytest.raises(DeploymentError, match="not an address of this machine"):
        require_free("192.0.2.7", port)


def test_the_superlinks_machine_needs_no_nodes_key_and_no_authoritys(made, tmp_path):
    """Who runs the server of secure sums must not hold the devices' signing keys."""
    (tmp_path / "there").mkdir(mode=0o700)
    shutil.copytree(made.superlink, tmp_path / "there" / "superlink")
    shutil.copy2(made.folder / "deployment.yaml", tmp_path / "there")
    there = open_deployment(tmp_path / "there")
    assert days_left(there) > 700 and len(there.public_keys()) == 2
