//! What every process that the program can be is made of: its folder, its ledger.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use aegis_keys::SigningKey;
use aegis_ledger::{Ledger, LedgerConfig};
use aegis_model::Clock;
use anyhow::{Context, bail};

use crate::config::Config;

/// Makes the data folder with its parts, and gives its full path.
pub(crate) fn prepare_folder(data: &Path, parts: &[&str]) -> anyhow::Result<PathBuf> {
    make_private_folder(data)?;
    for part in parts {
        make_private_folder(&data.join(part))?;
    }
    data.canonicalize().with_context(|| format!("cannot resolve {}", data.display()))
}

/// A folder that only its owner can enter.
pub(crate) fn make_private_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the folder {}; is the disk full or read-only?", path.display()))
}

/// Longest secret in a file, bytes.
const MAX_SECRET: u64 = 4096;

/// A secret in a file that only its owner can read.
pub(crate) fn read_private(file: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let about = || format!("the file {}", file.display());
    let opened = std::fs::File::open(file).with_context(about)?;
    let mode = opened.metadata().with_context(about)?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("{} can be read by others (mode {:o}); `chmod 600` it", file.display(), mode & 0o777);
    }
    let mut text = String::new();
    opened.take(MAX_SECRET + 1).read_to_string(&mut text).with_context(about)?;
    if text.len() as u64 > MAX_SECRET {
        bail!("{} is longer than {MAX_SECRET} bytes", file.display());
    }
    Ok(text)
}

/// The ledger of one source of events, in its part of the data folder.
pub(crate) async fn open_ledger(
    config: &Config,
    data: &Path,
    source: &str,
    edge_id: &str,
    key: SigningKey,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Ledger> {
    let mut ledger = LedgerConfig::new(data.join(source).join("ledger.db"), edge_id, source);
    ledger.queue_capacity = config.ledger.queue_capacity;
    ledger.max_batch = config.ledger.max_batch;
    ledger.hooks.page_limit = (config.ledger.max_pages > 0).then(|| Arc::new(AtomicU32::new(config.ledger.max_pages)));
    Ledger::open(ledger, key, clock.clone()).await.with_context(|| format!("the {source} ledger"))
}

/// A public key beside its private one, for whoever verifies receipts.
pub(crate) fn write_public_key(folder: &Path, name: &str, key: &SigningKey) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, format!("{}\n", key.verifying_key().to_base64()))
        .with_context(|| format!("cannot write {}", path.display()))
}
