//! The bus file on the disk: readable by its owner alone, and used by one process at a time.

use std::fs::{File, Permissions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::BusError;

/// The log holds every event and every frozen action. SQLite gives its `-wal` and `-shm` the mode of the file.
const OWNER_ONLY: u32 = 0o600;

/// What SQLite calls its log, behind the name of the file.
const LOG: &str = "-wal";

/// What a trial of the disk is called, behind the name of the file.
const TRIAL: &str = ".trial";

/// Bytes of the smallest trial: some pages.
const LEAST_TRIAL: u64 = 64 << 10;

/// SQLite's words for whatever a disk does not do, but for having no room.
const DISK_ERROR: &str = "disk I/O error";

/// How long opening waits for another holder of the file to go away.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// Makes the folder and the file if they are missing, and takes the lock beside the file. The operating system drops the lock with
/// the process, however that ends.
pub(super) async fn take(path: &Path) -> Result<File, BusError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| unavailable(folder, &e))?;
    }
    let lock_path = beside(path, ".lock");
    let lock = owned_file(&lock_path).map_err(|e| unavailable(&lock_path, &e))?;
    let deadline = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            // The previous holder may be on its way out.
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(BusError::InUse { path: path.display().to_string() }),
            Err(TryLockError::Error(e)) => return Err(unavailable(&lock_path, &e)),
        }
    }
    let trial = beside(path, TRIAL);
    match std::fs::remove_file(&trial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unavailable(&trial, &error)),
        _none_or_gone => {}
    }
    owned_file(path).map_err(|e| unavailable(path, &e))?;
    Ok(lock)
}

/// True where an earlier start left something in the log of the file.
pub(super) fn has_log(path: &Path) -> bool {
    std::fs::metadata(beside(path, LOG)).is_ok_and(|log| log.len() > 0)
}

/// Has the disk take as many bytes as the file grows by to have `whole`, in a file beside it that is gone afterwards; what the disk said where it does not. To be
/// asked before the log is worked into the file: what is refused there may be taken for written the second time, and would be missing in the file itself.
pub(super) async fn try_disk(path: &Path, whole: u64) -> Result<(), BusError> {
    let path = path.to_owned();
    let tried = tokio::task::spawn_blocking(move || {
        let trial = beside(&path, TRIAL);
        let tried = write_and_sync(&trial, trial_bytes(&path, whole), File::sync_all);
        let removed = std::fs::remove_file(&trial);
        tried.and(removed)
    });
    match tried.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(error) => Err(BusError::Unavailable { reason: error.to_string() }),
    }
}

/// What the disk said. By it is told whether the log is in doubt.
fn refusal(error: &std::io::Error) -> BusError {
    let what = if error.kind() == std::io::ErrorKind::StorageFull { "the disk is full" } else { DISK_ERROR };
    BusError::Unavailable { reason: format!("{what}: {error}") }
}

/// No more than the file will take itself: others write to the same disk, the ledger among them, without whose room calls are denied.
fn trial_bytes(path: &Path, whole: u64) -> u64 {
    whole.saturating_sub(std::fs::metadata(path).map_or(0, |file| file.len())).max(LEAST_TRIAL)
}

/// A disk without room says so to whoever writes. One that says so only of a sync has refused what it had taken: a pool without room behind a disk of which the
/// system thinks that it has some. That is no full disk, on which a log can be gone on with.
fn write_and_sync(path: &Path, bytes: u64, sync: impl FnOnce(&File) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut file = File::options().create(true).truncate(true).write(true).mode(OWNER_ONLY).open(path)?;
    std::io::copy(&mut std::io::repeat(0).take(bytes), &mut file)?;
    sync(&file).map_err(std::io::Error::other)
}

/// The file of that name with something behind it.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// True of an error of the disk that is no want of room: it may have refused pages of earlier commits too.
pub(super) fn is_disk_error(error: &BusError) -> bool {
    matches!(error, BusError::Unavailable { reason } if reason.contains(DISK_ERROR))
}

/// Says which file a failure is about.
pub(super) fn at(path: &Path) -> impl Fn(BusError) -> BusError {
    move |error| match error {
        BusError::Unavailable { reason } => BusError::Unavailable { reason: format!("{}: {reason}", path.display()) },
        other => other,
    }
}

fn owned_file(path: &Path) -> std::io::Result<File> {
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(OWNER_ONLY).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
    }
    Ok(file)
}

fn unavailable(path: &Path, error: &std::io::Error) -> BusError {
    BusError::Unavailable { reason: format!("{}: {error}", path.display()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trial_is_as_large_as_the_file_will_grow_by_and_is_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus.db");
        std::fs::write(&path, vec![0; 300_000]).unwrap();
        std::fs::write(beside(&path, LOG), vec![0; 9_000_000]).unwrap();
        assert_eq!(trial_bytes(&path, 300_000), LEAST_TRIAL);
        assert_eq!(trial_bytes(&path, 1_000_000), 700_000);
        // One that a process left that was killed meanwhile takes no room for ever.
        std::fs::write(beside(&path, TRIAL), vec![0; 100]).unwrap();
        let _lock = take(&path).await.unwrap();
        assert!(!beside(&path, TRIAL).exists());
        try_disk(&path, 1_000_000).await.unwrap();
        assert!(!beside(&path, TRIAL).exists());
    }

    #[test]
    fn a_disk_that_has_no_room_only_when_it_is_synced_is_no_full_one() {
        let folder = tempfile::tempdir().unwrap();
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let refused = write_and_sync(&folder.path().join("trial"), 100, |_| Err(full())).unwrap_err();
        assert!(is_disk_error(&refusal(&refused)), "{refused}");
        assert!(!is_disk_error(&refusal(&full())));
        // A real one that is full says so of the write.
        let written = write_and_sync(Path::new("/dev/full"), 100, |_| Ok(())).unwrap_err();
        assert!(!is_disk_error(&refusal(&written)), "{written}");
    }
}
