"""A real S3 server on loopback (versitygw over a folder, which outlives it), and as much of the protocol as the tests ask it themselves."""

import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import subprocess
import tempfile
import urllib.parse
import xml.etree.ElementTree

from nats import free_port
from own_process import OwnServer
from waiting import DEADLINE_S, unique, wait_until

SERVER = pathlib.Path(os.environ.get("AEGIS_CACHE", pathlib.Path.home() / ".cache/aegis")) / "bin/versitygw"
REGION = "us-east-1"
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, dict(response.getheaders()), response.read()


class S3Server(OwnServer):
    """One server with its own folder, key and bucket."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="aegis-s3-"))
        self.port = free_port()
        self.key, self.secret = "AKIDOFTHETESTS", unique("secret-of-the-tests")
        self.bucket = "lakes"
        # A bucket is a folder.
        (self.folder / "buckets" / self.bucket).mkdir(parents=True)

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def settings(self, prefix="lake"):
        """What the program is told of it, but for the key."""
        return {"AEGIS_LAKE_URL": f"s3://{self.bucket}/{prefix}", "AEGIS_LAKE_ENDPOINT": self.endpoint, "AEGIS_LAKE_REGION": REGION}

    @property
    def credentials(self):
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}

    # Life

    def start(self, read_only=False):
        assert not self.running, "already started"
        options = ["--readonly"] if read_only else []
        command = [SERVER, "--port", f"127.0.0.1:{self.port}", "--region", REGION, "--quiet", *options, "posix", self.folder / "buckets"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "ROOT_ACCESS_KEY_ID": self.key, "ROOT_SECRET_ACCESS_KEY": self.secret}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until("the S3 server answers", self._is_ready)
        return self

    def _is_ready(self):
        if self._process.poll() is not None:
            raise AssertionError(f"the S3 server ended:\n{(self.folder / 'log').read_text()[-2000:]}")
        try:
            return self.call("GET", "", {"list-type": "2"}).status == 200
        except OSError:
            return False

    # The protocol

    def call(self, method, name, query=None, body=b"", headers=None):
        """One signed call about an object of the bucket, or about the bucket (an empty name)."""
        path = urllib.parse.quote(f"/{self.bucket}/{name}" if name else f"/{self.bucket}")
        query = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote)
        at = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        signed = {name.lower(): value for name, value in (headers or {}).items()}
        signed |= {"host": f"127.0.0.1:{self.port}", "x-amz-content-sha256": hashlib.sha256(body).hexdigest(), "x-amz-date": at}
        names = ";".join(sorted(signed))
        lines = [f"{header}:{signed[header]}\n" for header in sorted(signed)]
        canonical = "\n".join([method, path, query, "".join(lines), names, signed["x-amz-content-sha256"]])
        scope = f"{at[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        signed["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, f"{path}?{query}" if query else path, body, signed)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, name):
        answer = self.call("GET", name)
        assert answer.status == 200, (name, answer.status, answer.body[:500])
        return answer.body

    def objects(self, prefix="lake/"):
        """The names of all objects below a prefix, and their sizes. The tests have fewer than a page."""
        answer = self.call("GET", "", {"list-type": "2", "prefix": prefix})
        assert answer.status == 200, (answer.status, answer.body[:500])
        listed = xml.etree.ElementTree.fromstring(answer.body)
        assert listed.findtext(f"{NAMESPACE}IsTruncated") == "false", "more than a page"
        return {one.findtext(f"{NAMESPACE}Key"): int(one.findtext(f"{NAMESPACE}Size")) for one in listed.findall(f"{NAMESPACE}Contents")}
