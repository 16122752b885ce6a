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
    owned_file(path).map_err(|e| unavailable(path, &e))?;
    Ok(lock)
}

/// True where an earlier start left something in the log of the file.
pub(super) fn has_log(path: &Path) -> bool {
    std::fs::metadata(beside(path, LOG)).is_ok_and(|log| log.len() > 0)
}

/// Has the disk take as many bytes as the log of the file has, in a file beside it that is gone afterwards; what the disk said where it does not. To be asked
/// before the log is worked into the file: what is refused there may be taken for written the second time, and would be missing in the file itself.
pub(super) async fn try_disk(path: &Path) -> Result<(), BusError> {
    let path = path.to_owned();
    let tried = tokio::task::spawn_blocking(move || {
        let (log, trial) = (beside(&path, LOG), beside(&path, ".trial"));
        let tried = write_and_sync(&trial, std::fs::metadata(log).map_or(0, |log| log.len()));
        let removed = std::fs::remove_file(&trial);
        tried.and(removed)
    });
    match tried.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
            Err(BusError::Unavailable { reason: format!("the disk is full: {error}") })
        }
        Ok(Err(error)) => Err(BusError::Unavailable { reason: format!("{DISK_ERROR}: {error}") }),
        Err(error) => Err(BusError::Unavailable { reason: error.to_string() }),
    }
}

fn write_and_sync(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::options().create(true).truncate(true).write(true).mode(OWNER_ONLY).open(path)?;
    std::io::copy(&mut std::io::repeat(0).take(bytes), &mut file)?;
    file.sync_all()
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
