"""Disks that are full or cannot be written: a tmpfs of a given size, where this machine lets us mount one."""

import contextlib
import ctypes
import os
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
