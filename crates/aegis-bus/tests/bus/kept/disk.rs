//! A disk that refuses pages for real: a file system in a file that has no room where it stands. The ledger's tests have it from here too.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// True of a run of everything (`make test-rust-full`), as long as it is not told to leave this out.
fn must_mount() -> bool {
    let may_skip = std::env::var("AEGIS_MAY_SKIP").unwrap_or_default();
    std::env::var_os("AEGIS_MUST_MOUNT").is_some() && may_skip.split(',').all(|name| name != "refused")
}

/// A file system of 64 MiB, in a file on one that has 40.
pub(super) struct Disk(TempDir);

impl Disk {
    /// None where this machine does not let us mount one.
    pub(super) fn mounted() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        for folder in ["below", "mounted", "after"] {
            std::fs::create_dir(disk.path(folder)).unwrap();
        }
        let (below, image) = (disk.text("below"), disk.text("below/image"));
        let is_there = run("mount", &["-t", "tmpfs", "-o", "size=40m", "tmpfs", &below]) && {
            File::create(disk.path("below/image")).unwrap().set_len(64 << 20).unwrap();
            run("mkfs.ext4", &["-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", &image])
                && run("mount", &["-o", "loop", &image, &disk.text("mounted")])
                && writes_by_page(&image)
        };
        assert!(
            is_there || !must_mount(),
            "no file system can be mounted here (root may, with mkfs.ext4 and loop devices); AEGIS_MAY_SKIP=refused allows that"
        );
        is_there.then_some(disk)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Takes all the room there is below.
    pub(super) fn fill(&self) {
        let mut filler = File::create(self.path("below/filler")).unwrap();
        for block in [vec![0u8; 1 << 20], vec![0u8; 4096]] {
            while filler.write_all(&block).is_ok() {}
        }
    }

    pub(super) fn make_room(&self) {
        std::fs::remove_file(self.path("below/filler")).unwrap();
    }

    /// Has the disk take what waits; it may refuse.
    pub(super) fn sync(&self) -> bool {
        run("sync", &["-f", &self.text("mounted")])
    }

    /// What is there behind a power failure.
    pub(super) fn after_the_power(&self) -> PathBuf {
        assert!(run("cp", &["--sparse=always", &self.text("below/image"), &self.text("image")]));
        // As a machine does that starts again: what the file system wrote of its own was refused too.
        run("e2fsck", &["-f", "-y", &self.text("image")]);
        assert!(run("mount", &["-o", "loop", &self.text("image"), &self.text("after")]));
        self.path("after")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for folder in ["after", "mounted", "below"] {
            run("umount", &["-l", &self.text(folder)]);
        }
    }
}

/// A loop device takes a write for done that the file system below it took in part only: it is given no two pages in one.
fn writes_by_page(image: &str) -> bool {
    let Ok(listed) = Command::new("losetup").args(["-j", image]).output() else { return false };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let device = listed.split(':').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    std::fs::write(format!("/sys/block/{device}/queue/max_sectors_kb"), "4").is_ok()
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let command = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}
