//! The bus file on the disk: readable by its owner alone, and used by one process at a time.

use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::BusError;

/// The log holds every event and every frozen action. SQLite gives its `-wal` and `-shm` the mode of the file.
const OWNER_ONLY: u32 = 0o600;

/// How long opening waits for another holder of the file to go away.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// Makes the folder and the file if they are missing, and takes the lock beside the file. The operating system drops the lock with
/// the process, however that ends.
pub(super) async fn take(path: &Path) -> Result<File, BusError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| unavailable(folder, &e))?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
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
