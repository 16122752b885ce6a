"""Disks that are full or cannot be written: a tmpfs of a given size, where this machine lets us mount one."""

import contextlib
import ctypes
import os
import pathlib
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MNT_DETACH = 1, 2
# Where who is not root may mount: in a namespace of users and mounts of its own, as the same user.
OWN_NAMESPACE = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
# Set in there, so that nobody looks for another one. Not AEGIS_..., which the program would take for a setting.
IN_NAMESPACE = "TESTS_IN_NAMESPACE"


def enter_own_namespace():
    """Begins this Python program anew where it may mount, if it is not root and this machine lets it. For its first lines: what it has begun is gone."""
    if os.geteuid() == 0 or IN_NAMESPACE in os.environ:
        return
    with contextlib.suppress(OSError):
        if subprocess.run([*OWN_NAMESPACE, "true"], capture_output=True).returncode == 0:
            os.environ[IN_NAMESPACE] = "1"
            os.execvp(OWN_NAMESPACE[0], [*OWN_NAMESPACE, sys.executable, *sys.orig_argv[1:]])


def mount(folder, options):
    """Mounts a tmpfs with options as `size=24m,mode=0700`, or `ro`; false where this machine does not let us."""
    folder.mkdir(parents=True, exist_ok=True)
    words = options.split(",")
    flags = MS_RDONLY if "ro" in words else 0
    data = ",".join(word for word in words if word != "ro").encode()
    # By the kernel's own call: the command refuses who is not root before it asks.
    return LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), data) == 0


def unmount(folder):
    LIBC.umount2(os.fsencode(folder), MNT_DETACH)


def fill(folder):
    """Takes every block that is left, in a file that is returned."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


class ReadOnlyLater:
    """An ext4 on a file, in `folder`, that turns read-only while it is written to, as the kernel has it do when the disk errs."""

    def __init__(self, folder, size="64M"):
        self.folder, self._image = folder, folder.with_name(f"{folder.name}.img")
        self._size = size

    def mount(self):
        """False where this machine does not let us."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made = os.geteuid() == 0 and self._run("truncate", "-s", self._size, self._image) and self._run("mkfs.ext4", "-q", self._image)
        if not made or not self._run("mount", "-o", "loop,errors=remount-ro", self._image, self.folder):
            return False
        self.folder.chmod(0o700)
        return self._trigger().exists()

    def fail(self):
        """From now on nothing can be written, by whoever has a file open either."""
        self._trigger().write_text("1")

    def repair(self):
        """As an operator does; nobody may have a file open."""
        assert self._run("umount", self.folder), f"{self.folder} is in use"
        # 1: errors were corrected.
        subprocess.run(["fsck.ext4", "-p", str(self._image)], capture_output=True)
        assert self._run("mount", "-o", "loop,errors=remount-ro", self._image, self.folder)

    def remove(self):
        unmount(self.folder)
        self._image.unlink(missing_ok=True)

    def _trigger(self):
        device = subprocess.run(["findmnt", "-n", "-o", "SOURCE", str(self.folder)], capture_output=True, text=True).stdout.strip()
        return pathlib.Path("/sys/fs/ext4", pathlib.Path(device).name, "trigger_fs_error")

    @staticmethod
    def _run(*command):
        return subprocess.run([*map(str, command)], capture_output=True).returncode == 0
