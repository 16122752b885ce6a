//! The copy of the control feed on disk: the signed entries as they came, and when the feed was last read whole. Trusted as little as the
//! bus: each entry is verified again when it is loaded, so that whoever changes the file can take away, and not add.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aegis_bus::Bucket;
use aegis_model::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What the first line of the file of entries says.
const SCHEMA: &str = "aegis-feed-copy-1";
const ENTRIES: &str = "feed.jsonl";
const CONFIRMED: &str = "feed.confirmed";

/// One line: where an entry stood, and its text.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    bucket: &'a str,
    key: String,
    entry: String,
}

/// A copy that was read.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) confirmed_at: Timestamp,
    pub(crate) entries: Vec<(Bucket, String, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Held {
    /// With their revisions.
    entries: BTreeMap<(Bucket, String), (i64, Vec<u8>)>,
    changed: bool,
}

/// The copy in a folder.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: PathBuf,
    held: Mutex<Held>,
}

impl Snapshot {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, held: Mutex::default() }
    }

    /// Notes an entry that the view took. One that it took before a newer one may be noted behind that, and does not take its place: nobody would put
    /// it right, for what holds is not applied again.
    pub(crate) fn hold(&self, bucket: Bucket, key: &str, bytes: &[u8], revision: i64) {
        let mut held = self.held.lock();
        let place = (bucket, key.to_owned());
        if held.entries.get(&place).is_none_or(|(known, text)| *known <= revision && text != bytes) {
            held.entries.insert(place, (revision, bytes.to_owned()));
            held.changed = true;
        }
    }

    /// Writes what changed, and that all of it was true at `confirmed_at`.
    pub(crate) fn save(&self, confirmed_at: Timestamp) -> std::io::Result<()> {
        self.save_entries()?;
        replace(&self.folder.join(CONFIRMED), format!("{}\n", confirmed_at.as_micros()).as_bytes())
    }

    /// Writes the entries, if any has changed, and says nothing of when they were true.
    pub(crate) fn save_entries(&self) -> std::io::Result<()> {
        let mut held = self.held.lock();
        if held.changed || !self.folder.join(ENTRIES).exists() {
            let mut text = format!("{SCHEMA}\n");
            for ((bucket, key), (_, entry)) in &held.entries {
                let entry = String::from_utf8_lossy(entry).into_owned();
                text.push_str(&serde_json::to_string(&Line { bucket: bucket.as_str(), key: key.clone(), entry })?);
                text.push('\n');
            }
            replace(&self.folder.join(ENTRIES), text.as_bytes())?;
            held.changed = false;
        }
        Ok(())
    }

    /// The copy, if there is one.
    pub(crate) fn load(&self) -> std::io::Result<Option<Restored>> {
        let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{}: {what}", self.folder.display()));
        if !self.folder.join(ENTRIES).exists() || !self.folder.join(CONFIRMED).exists() {
            return Ok(None);
        }
        let confirmed = std::fs::read_to_string(self.folder.join(CONFIRMED))?;
        let confirmed: i64 = confirmed.trim().parse().map_err(|_| bad("the time of the last reading is no number"))?;
        let text = std::fs::read_to_string(self.folder.join(ENTRIES))?;
        let mut lines = text.lines();
        if lines.next() != Some(SCHEMA) {
            return Err(bad("it is no copy of the control feed that this version knows"));
        }
        let mut entries = Vec::new();
        for line in lines {
            let line: Line<'_> = serde_json::from_str(line).map_err(|error| bad(&error.to_string()))?;
            let bucket = Bucket::ALL.into_iter().find(|bucket| bucket.as_str() == line.bucket);
            entries.push((bucket.ok_or_else(|| bad("an unknown bucket"))?, line.key, line.entry.into_bytes()));
        }
        Ok(Some(Restored { confirmed_at: Timestamp::from_micros(confirmed), entries }))
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_is_loaded_and_nothing_else_is_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::new(folder.path().to_owned());
        assert!(snapshot.load().unwrap().is_none());
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":1}", 1);
        snapshot.hold(Bucket::Containment, "acme.agent.y", b"{\"b\":2}", 2);
        snapshot.save(Timestamp::from_micros(7)).unwrap();
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":2}", 3);
        // It was taken first, and is noted last.
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":1}", 1);
        snapshot.save(Timestamp::from_micros(8)).unwrap();
        let restored = Snapshot::new(folder.path().to_owned()).load().unwrap().unwrap();
        assert_eq!(restored.confirmed_at, Timestamp::from_micros(8));
        let texts: Vec<(Bucket, &str, &[u8])> =
            restored.entries.iter().map(|(bucket, key, bytes)| (*bucket, key.as_str(), bytes.as_slice())).collect();
        assert_eq!(
            texts,
            [(Bucket::Containment, "acme.agent.y", &b"{\"b\":2}"[..]), (Bucket::Control, "acme.tool.x", &b"{\"a\":2}"[..])]
        );
        for spoiled in [
            "",
            "other\n",
            "aegis-feed-copy-1\nno json\n",
            "aegis-feed-copy-1\n{\"bucket\":\"x\",\"key\":\"k\",\"entry\":\"\"}\n",
        ] {
            std::fs::write(folder.path().join(ENTRIES), spoiled).unwrap();
            snapshot.load().unwrap_err();
        }
    }
}
