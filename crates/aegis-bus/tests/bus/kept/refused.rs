//! A disk that refuses pages behind a commit's back, for real: a file system in a file that has no room where it stands. What the system says of it once
//! is heard, and what is committed afterwards outlives the power (docs/adr/0049).

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
/// Messages of the keeper that the disk has, and that it refuses.
const TAKEN: i64 = 3;
const REFUSED: i64 = 60;

/// True of a run of everything (`make test-rust-full`), as long as it is not told to leave this out.
fn must_mount() -> bool {
    let may_skip = std::env::var("AEGIS_MAY_SKIP").unwrap_or_default();
    std::env::var_os("AEGIS_MUST_MOUNT").is_some() && may_skip.split(',').all(|name| name != "refused")
}

/// A file system of 64 MiB, in a file on one that has 40.
struct Disk(TempDir);

impl Disk {
    /// None where this machine does not let us mount one.
    fn mounted() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        for folder in ["below", "mounted", "after"] {
            std::fs::create_dir(disk.path(folder)).unwrap();
        }
        let (below, image) = (disk.text("below"), disk.text("below/image"));
        let is_there = run("mount", &["-t", "tmpfs", "-o", "size=40m", "tmpfs", &below]) && {
            File::create(disk.path("below/image")).unwrap().set_len(64 << 20).unwrap();
            run("mkfs.ext4", &["-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", &image])
                && run("mount", &["-o", "loop", &image, &disk.text("mounted")])
        };
        is_there.then_some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Takes all the room there is below.
    fn fill(&self) {
        let mut filler = File::create(self.path("below/filler")).unwrap();
        for block in [vec![0u8; 1 << 20], vec![0u8; 4096]] {
            while filler.write_all(&block).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path("below/filler")).unwrap();
    }

    /// Has the disk take what waits; it may refuse.
    fn sync(&self) -> bool {
        run("sync", &["-f", &self.text("mounted")])
    }

    /// What is there behind a power failure.
    fn after_the_power(&self) -> PathBuf {
        assert!(run("cp", &["--sparse=always", &self.text("below/image"), &self.text("image")]));
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

fn run(program: &str, arguments: &[&str]) -> bool {
    let command = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

#[tokio::test]
async fn what_is_committed_behind_pages_that_a_disk_refused_outlives_the_power() {
    let Some(disk) = Disk::mounted() else {
        assert!(
            !must_mount(),
            "no file system can be mounted here (root may, with mkfs.ext4 and loop devices); AEGIS_MAY_SKIP=refused allows that"
        );
        println!("left out: no file system can be mounted here");
        return;
    };
    let shelf = Arc::new(Shelf::default());
    let bus = open(&disk.path("mounted"), limits(), &shelf).await;
    let publish = async |message: Message| bus.publish(Stream::Ase, vec![message]).await.pop().unwrap();
    for n in 1..=TAKEN {
        publish(shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).await.unwrap();
    }
    bus.settle().await.unwrap();
    assert!(disk.sync());
    disk.fill();
    for n in TAKEN + 1..=TAKEN + REFUSED {
        publish(shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).await.unwrap();
    }
    // The system writes now what it was given, and is refused. Nobody is told but whoever asks for the disk next.
    disk.sync();
    let whole = || Message::new("ase.00.t.y", "whole").with_id("whole");
    let refused = publish(whole()).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("disk I/O error"), "{refused}");
    // Nothing is worked into the file that the disk would refuse there.
    for _ in 0..3 {
        publish(whole()).await.unwrap_err();
    }
    disk.make_room();
    let begun = Instant::now();
    while publish(whole()).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the bus does not go on");
        sleep(Duration::from_millis(50)).await;
    }

    // The power fails here.
    disk.sync();
    let after = EmbeddedBus::open(&disk.after_the_power().join("bus.db"), limits(), Arc::new(SystemClock)).await.unwrap();
    assert_eq!(after.keep_with("shelf", Arc::clone(&shelf) as Arc<dyn Keeper>).await.unwrap(), Some(TAKEN + REFUSED));
    let kept = (1..=TAKEN + REFUSED).map(|n| format!("kept {n}"));
    let expected: Vec<(u64, String)> = (1..).zip(kept.chain(["whole".to_owned()])).collect();
    assert_eq!(texts(&read(&after, ">", 0, 100).await), expected);
    after.close().await;
    bus.close().await;
}
