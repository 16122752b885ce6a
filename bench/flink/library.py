"""Apache Flink as a library: its jars, fetched from PyPI once, and a program of our own that runs over them. For the benchmark beside it, and for
tests/judge/flink."""

import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import venv

REQUIREMENTS = pathlib.Path(__file__).resolve().parent / "requirements.txt"
CACHE = pathlib.Path(os.environ.get("AEGIS_CACHE", pathlib.Path.home() / ".cache/aegis"))
VERSION = REQUIREMENTS.read_text().split("==")[1].split()[0]
# Flink's own start script opens these of Java's packages to its serializers; what is here is what the jobs come to.
OPENED = ["--add-opens=java.base/java.util=ALL-UNNAMED", "--add-opens=java.base/java.lang=ALL-UNNAMED"]
JDK = "a JDK of version 17 (Debian: openjdk-17-jdk-headless)"


def missing():
    """What of a JDK is not on the path."""
    return [tool for tool in ("java", "javac") if not shutil.which(tool)]


def libraries():
    """Flink's jars: pip checks the hash of what it fetches, once."""
    folder = CACHE / f"flink-{VERSION}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="flink-", dir=CACHE) as fresh:
            fresh = pathlib.Path(fresh)
            venv.create(fresh / "venv", with_pip=True)
            pip = [fresh / "venv/bin/pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*pip, "--require-hashes", "--requirement", REQUIREMENTS, "--dest", fresh / "sdist"], check=True)
            (archive,) = (fresh / "sdist").iterdir()
            jars = fresh / "jars"
            jars.mkdir()
            with tarfile.open(archive) as packed:
                for member in packed:
                    path = pathlib.PurePosixPath(member.name)
                    if member.isfile() and path.parts[1:-1] == ("deps", "lib") and path.suffix == ".jar":
                        with packed.extractfile(member) as jar, (jars / path.name).open("wb") as copy:
                            shutil.copyfileobj(jar, copy)
            jars.rename(folder)
    return folder


def compiled(source, folder):
    """Compiles a program into the folder."""
    subprocess.run(["javac", "-proc:none", "-cp", f"{libraries()}/*", "-d", folder, source], check=True)


class Program:
    """A compiled program with Flink's jars beside it, which answers each line that it reads with a line of JSON. `before` is what the process is started with."""

    def __init__(self, folder, name, arguments, memory, before=()):
        command = [*before, "java", *memory, *OPENED, "-cp", f"{folder}:{libraries()}/*", name, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        """What it answers; None where it ended instead."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else None
