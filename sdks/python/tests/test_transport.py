"""Connections: how many there are, and with whom."""

import datetime
import ipaddress
import ssl
import threading

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake import FakeEdge

import aegisagent

CONNECTIONS, CALLS = 16, 48


@pytest.mark.feature("transport")
@pytest.mark.parametrize("kind", ["blocking", "asyncio", "trio"])
def test_there_are_never_more_than_16_connections(edge, kind):
    """Each answer waits until as many calls are at the server as there may be connections; the others wait for their turn."""
    together, ports = threading.Barrier(CONNECTIONS), []

    def answer(handler):
        ports.append(handler.client_address[1])
        together.wait(60)
        handler.close_connection = False
        handler.reply(200, {})

    edge.replace["other"] = lambda _honest: answer
    if kind == "blocking":
        with aegisagent.Client(edge.url, "x" * 40, timeout_s=120) as client, aegisagent.TrustThreadPoolExecutor(CALLS) as pool:
            found = [future.result() for future in [pool.submit(client.summary) for _ in range(CALLS)]]
    else:
        found = []

        async def main():
            async with aegisagent.AsyncClient(edge.url, "x" * 40, timeout_s=120) as client, anyio.create_task_group() as tasks:

                async def one():
                    found.append(await client.summary())

                for _ in range(CALLS):
                    tasks.start_soon(one)

        anyio.run(main, backend=kind)
    assert found == [{}] * CALLS
    assert (len(ports), len(set(ports))) == (CALLS, CONNECTIONS)


class Authority:
    """One that signs certificates of servers, in `folder`."""

    def __init__(self, folder, name):
        self.key, self.name, self.folder = ec.generate_private_key(ec.SECP256R1()), name, folder
        self.file = str(folder / f"{name}.pem")
        self._write(self.file, self._signed(name, self.key, ca=True))

    def _signed(self, subject, key, *, ca, address="127.0.0.1", days=1):
        now = datetime.datetime.now(datetime.timezone.utc)
        called = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (subject, self.name)]
        uses = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
        )
        builder = (
            x509.CertificateBuilder().subject_name(called[0]).issuer_name(called[1]).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **uses), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )  # fmt: skip
        if not ca:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    @staticmethod
    def _write(path, certificate, *rest):
        with open(path, "wb") as out:
            out.write(certificate.public_bytes(serialization.Encoding.PEM) + b"".join(rest))

    def server(self, **how):
        """The side of a server that has such a certificate."""
        key, path = ec.generate_private_key(ec.SECP256R1()), str(self.folder / "server.pem")
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self._write(path, self._signed("server", key, ca=False, **how), pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.mark.feature("transport")
def test_a_server_is_believed_whose_certificate_is_right(mode, recorder, tmp_path):
    authority = Authority(tmp_path, "ours")
    edge = FakeEdge(tls=authority.server())
    try:
        found = mode.run(edge.url, lambda protect: [protect(recorder)("a"), protect(recorder)("b")], ca_file=authority.file)
    finally:
        edge.close()
    assert found == ["done"] * 2
    assert len(edge.sent("outcome")) == 2


@pytest.mark.feature("transport")
@pytest.mark.parametrize(
    ("how", "believed"),
    [({}, "others"), ({}, None), ({"address": "127.0.0.2"}, "ours"), ({"days": -1}, "ours")],
    ids=["another authority's", "nobody's", "another server's", "an old one"],
)
def test_a_server_whose_certificate_is_wrong_is_told_nothing(mode, recorder, tmp_path, how, believed):
    files = {name: Authority(tmp_path, name) for name in ("ours", "others")}
    edge = FakeEdge(tls=files["ours"].server(**how))
    try:
        with pytest.raises(aegisagent.DeniedUnavailable) as denied:
            mode.run(edge.url, lambda protect: protect(recorder)("a"), ca_file=believed and files[believed].file)
    finally:
        edge.close()
    assert (denied.value.code, recorder.calls, edge.seen) == ("unreachable", [], [])
