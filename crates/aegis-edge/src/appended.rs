//! A file of lines that grows at its end: what is new is added, and one line costs what a line costs. At a start, after a failure and once more would be
//! added than it had then, it is written anew, whole or not at all: it is never much more than twice what there is to say, however large its lines are.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes that are added before it is written anew, where it was no larger than that.
const MOST_ADDED: usize = 1 << 20;

/// How large the file is, bytes.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// When it was written anew.
    whole: usize,
    /// What was added since.
    added: usize,
}

#[derive(Debug)]
pub(crate) struct Appended {
    path: PathBuf,
    /// None: nobody knows what stands there.
    size: Option<Size>,
}

impl Appended {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, size: None }
    }

    /// Whether it has what was written.
    pub(crate) fn is_good(&self) -> bool {
        self.size.is_some() && self.path.exists()
    }

    /// Adds what is `fresh`, or writes `all` there is in its place. It is on the disk then.
    pub(crate) fn write(
        &mut self,
        fresh: impl FnOnce() -> std::io::Result<String>,
        all: impl FnOnce() -> std::io::Result<String>,
    ) -> std::io::Result<()> {
        let is_good = self.is_good();
        // Until it is done, nobody knows what stands there.
        let before = self.size.take().filter(|_| is_good);
        if let Some(Size { whole, added }) = before {
            let text = fresh()?;
            let added = added + text.len();
            if added <= whole.max(MOST_ADDED) {
                let mut file = OpenOptions::new().append(true).open(&self.path)?;
                file.write_all(text.as_bytes())?;
                file.sync_data()?;
                self.size = Some(Size { whole, added });
                return Ok(());
            }
        }
        let text = all()?;
        replace(&self.path, text.as_bytes())?;
        self.size = Some(Size { whole: text.len(), added: 0 });
        Ok(())
    }
}

/// Writes a file whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
