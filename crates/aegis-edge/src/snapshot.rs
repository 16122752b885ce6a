//! The copy of the control feed on disk: the signed entries as they came, and when the feed was last read whole. Trusted as little as the
//! bus: each entry is verified again when it is loaded, so that whoever changes the file can take away, and not add. What changes is added at the end,
//! and now and then the file is written anew: one freeze does not cost what everything costs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use aegis_bus::Bucket;
use aegis_model::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::appended::{Appended, replace};

/// What the first line of the file of entries says.
const SCHEMA: &str = "aegis-feed-copy-1";
const ENTRIES: &str = "feed.jsonl";
const CONFIRMED: &str = "feed.confirmed";

/// Where an entry stands.
type Place = (Bucket, Arc<str>);

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
    entries: BTreeMap<Place, (i64, Arc<[u8]>)>,
    /// Those that are not in the file as they are.
    fresh: BTreeSet<Place>,
}

impl Held {
    /// Those that are not in the file as they are.
    fn take_fresh(&mut self) -> Vec<(Place, Arc<[u8]>)> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh.into_iter().filter_map(|place| self.entries.get(&place).map(|(_, text)| (place.clone(), text.clone()))).collect()
    }

    /// All of them, for a file that has them all.
    fn take_all(&mut self) -> Vec<(Place, Arc<[u8]>)> {
        self.fresh.clear();
        self.entries.iter().map(|(place, (_, text))| (place.clone(), text.clone())).collect()
    }
}

/// The copy in a folder.
#[derive(Debug)]
pub(crate) struct Snapshot {
    folder: PathBuf,
    /// Never locked while anything is written: who applies a containment waits for it.
    held: Mutex<Held>,
    file: Mutex<Appended>,
}

impl Snapshot {
    pub(crate) fn new(folder: PathBuf) -> Self {
        let file = Mutex::new(Appended::new(folder.join(ENTRIES)));
        Self { folder, held: Mutex::default(), file }
    }

    /// Notes an entry that the view took. One that it took before a newer one may be noted behind that, and does not take its place: nobody would put
    /// it right, for what holds is not applied again.
    pub(crate) fn hold(&self, bucket: Bucket, key: &str, bytes: &[u8], revision: i64) {
        let place: Place = (bucket, Arc::from(key));
        let mut held = self.held.lock();
        if held.entries.get(&place).is_none_or(|(known, text)| *known <= revision && **text != *bytes) {
            held.entries.insert(place.clone(), (revision, Arc::from(bytes)));
            held.fresh.insert(place);
        }
    }

    /// Writes the entries that have changed, and says nothing of when they were true. Takes as long as a disk does, and two at once one after the other.
    pub(crate) fn save_entries(&self) -> std::io::Result<()> {
        let mut file = self.file.lock();
        let is_good = file.is_good();
        let fresh = self.held.lock().take_fresh();
        if is_good && fresh.is_empty() {
            return Ok(());
        }
        let all = || -> std::io::Result<String> {
            let all = self.held.lock().take_all();
            Ok(format!("{SCHEMA}\n{}", text_of(&all)?))
        };
        file.write(|| text_of(&fresh), all)
    }

    /// Writes that all of the entries were true at `confirmed_at`. Behind them: a file of before that has not all of them is not said to.
    pub(crate) fn save_confirmed(&self, confirmed_at: Timestamp) -> std::io::Result<()> {
        replace(&self.folder.join(CONFIRMED), format!("{}\n", confirmed_at.as_micros()).as_bytes())
    }

    /// The copy, if there is one.
    pub(crate) fn load(&self) -> std::io::Result<Option<Restored>> {
        let bad = |what: &str| Error::new(ErrorKind::InvalidData, format!("{}: {what}", self.folder.display()));
        if !self.folder.join(ENTRIES).exists() || !self.folder.join(CONFIRMED).exists() {
            return Ok(None);
        }
        let confirmed = std::fs::read_to_string(self.folder.join(CONFIRMED))?;
        let confirmed: i64 = confirmed.trim().parse().map_err(|_| bad("the time of the last reading is no number"))?;
        let mut file = BufReader::new(File::open(self.folder.join(ENTRIES))?);
        let mut line = Vec::new();
        if next_line(&mut file, &mut line)? != Some(SCHEMA.as_bytes()) {
            return Err(bad("it is no copy of the control feed that this version knows"));
        }
        // What was added later stands for what stood there before.
        let mut entries = BTreeMap::new();
        while let Some(text) = next_line(&mut file, &mut line)? {
            let line: Line<'_> = serde_json::from_slice(text).map_err(|error| bad(&error.to_string()))?;
            let bucket = Bucket::ALL.into_iter().find(|bucket| bucket.as_str() == line.bucket);
            entries.insert((bucket.ok_or_else(|| bad("an unknown bucket"))?, line.key), line.entry.into_bytes());
        }
        let entries = entries.into_iter().map(|((bucket, key), entry)| (bucket, key, entry)).collect();
        Ok(Some(Restored { confirmed_at: Timestamp::from_micros(confirmed), entries }))
    }
}

/// Entries as the file has them, one a line.
fn text_of(entries: &[(Place, Arc<[u8]>)]) -> std::io::Result<String> {
    let mut text = String::new();
    for ((bucket, key), entry) in entries {
        let entry = String::from_utf8_lossy(entry).into_owned();
        text.push_str(&serde_json::to_string(&Line { bucket: bucket.as_str(), key: key.to_string(), entry })?);
        text.push('\n');
    }
    Ok(text)
}

/// The next line, without its break; None behind the last that was written to its end. A power failure leaves one without its break, or zeros where
/// the file had grown already: what came with it was not on the disk, so that nobody was told that it is kept, and no later writing came behind it.
fn next_line<'a>(file: &mut impl BufRead, line: &'a mut Vec<u8>) -> std::io::Result<Option<&'a [u8]>> {
    line.clear();
    file.read_until(b'\n', line)?;
    let is_whole = line.pop() == Some(b'\n') && !line.contains(&0);
    Ok(is_whole.then_some(line.as_slice()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    fn save(snapshot: &Snapshot, confirmed_at: i64) {
        snapshot.save_entries().unwrap();
        snapshot.save_confirmed(Timestamp::from_micros(confirmed_at)).unwrap();
    }

    /// What a next start would have.
    fn loaded(folder: &Path) -> Vec<(Bucket, String, String)> {
        let restored = Snapshot::new(folder.to_owned()).load().unwrap().unwrap();
        restored.entries.into_iter().map(|(bucket, key, bytes)| (bucket, key, String::from_utf8(bytes).unwrap())).collect()
    }

    fn lines(folder: &Path) -> usize {
        std::fs::read_to_string(folder.join(ENTRIES)).unwrap().lines().count()
    }

    #[test]
    fn what_was_held_is_loaded_and_nothing_else_is_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::new(folder.path().to_owned());
        assert!(snapshot.load().unwrap().is_none());
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":1}", 1);
        snapshot.hold(Bucket::Containment, "acme.agent.y", b"{\"b\":2}", 2);
        save(&snapshot, 7);
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":2}", 3);
        // It was taken first, and is noted last.
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":1}", 1);
        save(&snapshot, 8);
        assert_eq!(snapshot.load().unwrap().unwrap().confirmed_at, Timestamp::from_micros(8));
        let texts = [(Bucket::Containment, "acme.agent.y", "{\"b\":2}"), (Bucket::Control, "acme.tool.x", "{\"a\":2}")];
        assert_eq!(loaded(folder.path()), texts.map(|(bucket, key, text)| (bucket, key.to_owned(), text.to_owned())));
        for spoiled in [
            "",
            "aegis-feed-copy-1",
            "other\n",
            "aegis-feed-copy-1\nno json\n",
            "aegis-feed-copy-1\n{\"bucket\":\"x\",\"key\":\"k\",\"entry\":\"\"}\n",
        ] {
            std::fs::write(folder.path().join(ENTRIES), spoiled).unwrap();
            snapshot.load().unwrap_err();
        }
    }

    #[test]
    fn a_change_is_added_and_one_that_a_crash_cut_off_takes_nothing_else_away() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::new(folder.path().to_owned());
        for n in 0..100 {
            snapshot.hold(Bucket::Control, &format!("acme.tool.{n}"), b"{}", 1);
        }
        save(&snapshot, 1);
        let before = loaded(folder.path());
        snapshot.hold(Bucket::Containment, "acme.agent.y", b"{\"b\":\"\xc3\xa4\"}", 2);
        snapshot.save_entries().unwrap();
        assert_eq!(lines(folder.path()), 102, "one line more");
        snapshot.save_entries().unwrap();
        assert_eq!(lines(folder.path()), 102, "there was nothing to write");
        let whole = std::fs::read(folder.path().join(ENTRIES)).unwrap();
        let with_it = loaded(folder.path());
        assert_eq!(with_it.len(), before.len() + 1);
        let line = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
        for cut in line..whole.len() {
            std::fs::write(folder.path().join(ENTRIES), &whole[..cut]).unwrap();
            assert_eq!(loaded(folder.path()), before, "{cut}");
        }
        // Or it left zeros where the file had grown already, and what was written behind them.
        for hole in line..whole.len() {
            let mut holed = whole.clone();
            holed[line..=hole].fill(0);
            holed.extend_from_slice(&whole[line..]);
            std::fs::write(folder.path().join(ENTRIES), &holed).unwrap();
            assert_eq!(loaded(folder.path()), before, "{hole}");
            holed[line..=hole].fill(b'x');
            std::fs::write(folder.path().join(ENTRIES), &holed).unwrap();
            Snapshot::new(folder.path().to_owned()).load().unwrap_err();
        }
        // A start writes it anew, whatever stands there.
        let next = Snapshot::new(folder.path().to_owned());
        with_it.iter().for_each(|(bucket, key, text)| next.hold(*bucket, key, text.as_bytes(), 2));
        next.save_entries().unwrap();
        assert_eq!(loaded(folder.path()), with_it);
    }

    #[test]
    fn a_copy_that_grows_or_is_gone_or_could_not_be_written_is_written_anew() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("missing");
        let snapshot = Snapshot::new(folder.clone());
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{\"a\":0}", 0);
        snapshot.save_entries().unwrap_err();
        std::fs::create_dir(&folder).unwrap();
        save(&snapshot, 1);
        assert_eq!(loaded(&folder).len(), 1, "nothing is forgotten for that");
        for revision in 1..=3 {
            snapshot.hold(Bucket::Control, "acme.tool.x", format!("{{\"a\":{revision}}}").as_bytes(), revision);
            snapshot.save_entries().unwrap();
        }
        assert_eq!((lines(&folder), loaded(&folder)[0].2.as_str()), (5, "{\"a\":3}"), "what was added last counts");
        // However large its entries are.
        for revision in 4..15 {
            let large = format!("{{\"a\":\"{}{revision}\"}}", "x".repeat(1 << 20));
            snapshot.hold(Bucket::Control, "acme.tool.x", large.as_bytes(), revision);
            snapshot.save_entries().unwrap();
            assert!(lines(&folder) <= 3, "it has what held when it was written anew, and once as much at most: {revision}");
            assert_eq!(loaded(&folder)[0].2, large);
        }
        std::fs::remove_file(folder.join(ENTRIES)).unwrap();
        snapshot.save_entries().unwrap();
        assert_eq!(loaded(&folder).len(), 1);
        std::fs::remove_file(folder.join(ENTRIES)).unwrap();
        snapshot.hold(Bucket::Control, "acme.tool.x", b"{}", 15);
        snapshot.save_entries().unwrap();
        assert_eq!(loaded(&folder), [(Bucket::Control, "acme.tool.x".to_owned(), "{}".to_owned())]);
    }
}
