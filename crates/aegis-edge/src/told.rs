//! What other edges made of runs, as control tells it, and whether all of that is known here. The copy on disk holds it over a start: not
//! signed, because a label only tightens. Whoever changes the file can take away, as with the copy of the feed, and what he adds denies.

use std::io::{Error, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use aegis_model::{SourceTrust, TenantId, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::appended::Appended;
use crate::digest::Key;
use crate::runs::{Entry, Runs};

/// How many runs of other edges are held: control remembers 20,000 of a tenant.
const TOLD_RUNS: usize = 1_000_000;
/// What the first line of the copy says.
const SCHEMA: &str = "\"aegis-run-labels-copy-1\"\n";
const FILE: &str = "trust.jsonl";
/// How often it is written that nothing has changed, microseconds.
const AS_OF_EVERY_US: i64 = 60_000_000;
/// Pauses after a writing that failed: all of the file is made again for the next.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The labels of other edges' runs.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) runs: Runs,
    /// False from a start beside other edges until the bucket `trust` was read.
    was_read: AtomicBool,
    /// What the copy was as old as that this start has loaded, microseconds; `i64::MIN` without one.
    copy_us: AtomicI64,
}

impl Default for Told {
    fn default() -> Self {
        Self { runs: Runs::new(TOLD_RUNS), was_read: AtomicBool::new(true), copy_us: AtomicI64::new(i64::MIN) }
    }
}

impl Told {
    /// There are other edges, and what they made of runs is not read yet.
    pub(crate) fn await_reading(&self) {
        self.was_read.store(false, Ordering::Release);
    }

    /// Everything was read, and what follows is heard.
    pub(crate) fn finish_reading(&self) {
        self.was_read.store(true, Ordering::Release);
    }

    pub(crate) fn was_read(&self) -> bool {
        self.was_read.load(Ordering::Acquire)
    }

    /// What is held was all there was at `as_of`.
    pub(crate) fn restored(&self, as_of: Timestamp) {
        self.copy_us.store(as_of.as_micros(), Ordering::Release);
    }

    /// False while a run that is not held may be one that another edge has labelled: nothing was read since the start, and there is no copy that
    /// is at most `max_copy_s` old, or by a clock that was set back since as far ahead. At 0 no copy is gone by.
    pub(crate) fn is_known(&self, now: Timestamp, max_copy_s: i64) -> bool {
        let age_us = || now.as_micros().abs_diff(self.copy_us.load(Ordering::Acquire));
        self.was_read() || (max_copy_s > 0 && age_us() <= max_copy_s.unsigned_abs().saturating_mul(1_000_000))
    }
}

/// One line of the copy, its times in microseconds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// All that stands above it was all there was at this time.
    AsOf(i64),
    /// A run's label, and when it ends.
    Label(TenantId, String, SourceTrust, i64),
    /// Until when the tenant may have runs that are not named here.
    Lost(TenantId, i64),
}

impl Line {
    fn of(tenant: &TenantId, entry: Entry) -> Self {
        match entry {
            Entry::Label { run, trust, ends } => {
                Self::Label(tenant.clone(), format!("{:032x}", u128::from_be_bytes(run)), trust, ends.as_micros())
            }
            Entry::Lost { until } => Self::Lost(tenant.clone(), until.as_micros()),
        }
    }

    fn write(&self, text: &mut String) -> std::io::Result<()> {
        text.push_str(&serde_json::to_string(self)?);
        text.push('\n');
        Ok(())
    }
}

/// The copy in a folder: lines are added as they come, and now and then the file is written anew.
#[derive(Debug)]
pub(crate) struct LabelCopy {
    path: PathBuf,
    /// Lines that are not in the file yet.
    fresh: Mutex<String>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    file: Appended,
    as_of: Option<Timestamp>,
    /// After a failure: not before then.
    not_before: Option<Instant>,
    /// The pause after the next failure.
    pause: Duration,
}

impl LabelCopy {
    pub(crate) fn new(folder: &std::path::Path) -> Self {
        let path = folder.join(FILE);
        let file = Appended::new(path.clone());
        let written = Mutex::new(Written { file, as_of: None, not_before: None, pause: FIRST_PAUSE });
        Self { path, fresh: Mutex::default(), written }
    }

    /// Notes a label that says something new.
    pub(crate) fn hold(&self, tenant: &TenantId, run: Key, trust: SourceTrust, ends: Timestamp) {
        let line = Line::of(tenant, Entry::Label { run, trust, ends });
        // What has no text is in no file.
        let _left_out = line.write(&mut self.fresh.lock());
    }

    /// Writes what is new of `runs`, and that all of it was all there was at `as_of`. After a failure it does nothing for a while.
    pub(crate) fn save(&self, runs: &Runs, as_of: Option<Timestamp>, now: Timestamp) -> std::io::Result<()> {
        self.save_at(runs, as_of, now, Instant::now())
    }

    fn save_at(&self, runs: &Runs, as_of: Option<Timestamp>, now: Timestamp, at: Instant) -> std::io::Result<()> {
        let mut written = self.written.lock();
        if written.not_before.is_some_and(|not_before| at < not_before) {
            // The file is written anew then, with what came meanwhile.
            self.fresh.lock().clear();
            return Ok(());
        }
        let done = self.write(&mut written, runs, as_of, now);
        if done.is_ok() {
            (written.not_before, written.pause) = (None, FIRST_PAUSE);
        } else {
            written.not_before = Some(at + written.pause);
            written.pause = (written.pause * 2).min(LONGEST_PAUSE);
        }
        done
    }

    fn write(&self, written: &mut Written, runs: &Runs, as_of: Option<Timestamp>, now: Timestamp) -> std::io::Result<()> {
        let fresh = std::mem::take(&mut *self.fresh.lock());
        let is_due = match (as_of, written.as_of) {
            (Some(as_of), Some(before)) => as_of.as_micros().saturating_sub(before.as_micros()) >= AS_OF_EVERY_US,
            (as_of, _) => as_of.is_some(),
        };
        if fresh.is_empty() && !is_due && written.file.is_good() {
            return Ok(());
        }
        let as_of = as_of.or(written.as_of);
        let vouched = |mut text: String| -> std::io::Result<String> {
            if let Some(as_of) = as_of {
                Line::AsOf(as_of.as_micros()).write(&mut text)?;
            }
            Ok(text)
        };
        let all = || -> std::io::Result<String> {
            let mut text = SCHEMA.to_owned();
            for (tenant, entry) in runs.entries(now) {
                Line::of(&tenant, entry).write(&mut text)?;
            }
            vouched(text)
        };
        written.file.write(|| vouched(fresh), all)?;
        written.as_of = as_of;
        Ok(())
    }

    /// Takes the copy into `runs`, and says what it is as old as; None where there is none, or one that nobody vouched for.
    pub(crate) fn load(&self, runs: &Runs, now: Timestamp) -> std::io::Result<Option<Timestamp>> {
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let bad = |what: String| Error::new(ErrorKind::InvalidData, format!("{}: {what}", self.path.display()));
        let lines = text.strip_prefix(SCHEMA).ok_or_else(|| bad("no copy of labels that this version knows".to_owned()))?;
        // A line that a crash cut off ends without its break, or has zeros where the file had grown already, and nothing behind it was vouched for.
        let lines = lines.split_once('\0').map_or(lines, |(before, _)| before);
        let lines = lines.rfind('\n').map_or("", |end| &lines[..end]);
        // What had ended by then. The clock of a start was not corrected yet: one that is ahead would have all of them ended.
        let written_us = lines.lines().rev().find_map(|line| line.parse::<i64>().ok());
        let then = written_us.map_or(now, |at| now.min(Timestamp::from_micros(at)));
        let mut as_of = None;
        for line in lines.lines() {
            match serde_json::from_str(line).map_err(|error| bad(error.to_string()))? {
                Line::AsOf(at) => as_of = Some(Timestamp::from_micros(at)),
                Line::Label(tenant, run, trust, ends) => {
                    let run = u128::from_str_radix(&run, 16).map_err(|error| bad(error.to_string()))?.to_be_bytes();
                    if ends > then.as_micros() {
                        runs.take(&tenant, run, trust, Timestamp::from_micros(ends), then);
                    }
                }
                Line::Lost(tenant, until) => runs.lose(&tenant, Timestamp::from_micros(until)),
            }
        }
        self.written.lock().as_of = as_of;
        Ok(as_of)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::run_key;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn acme() -> TenantId {
        TenantId::new("acme").unwrap()
    }

    /// A label that is told: taken, and noted for the copy.
    fn tell(runs: &Runs, copy: &LabelCopy, run: &str, trust: SourceTrust, ends: i64) {
        runs.take(&acme(), run_key(run), trust, at(ends), at(0));
        copy.hold(&acme(), run_key(run), trust, at(ends));
    }

    fn loaded(folder: &std::path::Path, now: i64) -> (Runs, Option<Timestamp>) {
        let runs = Runs::new(100);
        let as_of = LabelCopy::new(folder).load(&runs, at(now)).unwrap();
        (runs, as_of)
    }

    #[test]
    fn what_was_told_is_there_at_the_next_start_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, copy) = (Runs::new(100), LabelCopy::new(folder.path()));
        assert_eq!(loaded(folder.path(), 0).1, None);
        tell(&runs, &copy, "a", SourceTrust::SemiTrustedCustomer, 100);
        copy.save(&runs, Some(at(1)), at(1)).unwrap();
        tell(&runs, &copy, "a", SourceTrust::UntrustedExternal, 110);
        tell(&runs, &copy, "b", SourceTrust::Unknown, 50);
        copy.save(&runs, Some(at(6)), at(6)).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join(FILE)).unwrap().lines().count(), 6, "the second was added");
        let label = |runs: &Runs, run: &str, now: i64| runs.label(&acme(), &run_key(run), at(now));
        let (restored, as_of) = loaded(folder.path(), 60);
        assert_eq!(as_of, Some(at(6)));
        assert_eq!(label(&restored, "a", 60), Some(SourceTrust::UntrustedExternal));
        assert_eq!((label(&restored, "b", 60), label(&restored, "a", 110)), (None, None));
        // A clock that is ahead at the start, and corrected later, has ended none of them.
        let (restored, _) = loaded(folder.path(), 1_000_000);
        assert_eq!(label(&restored, "a", 60), Some(SourceTrust::UntrustedExternal));
        // What nobody vouched for since then is held all the same, and is as old as before.
        tell(&runs, &copy, "c", SourceTrust::UntrustedExternal, 110);
        copy.save(&runs, None, at(7)).unwrap();
        let (restored, as_of) = loaded(folder.path(), 60);
        assert_eq!((label(&restored, "c", 60), as_of), (Some(SourceTrust::UntrustedExternal), Some(at(6))));
    }

    #[test]
    fn a_copy_that_was_cut_off_is_good_up_to_there_and_one_that_was_spoiled_is_of_no_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let (runs, copy) = (Runs::new(100), LabelCopy::new(folder.path()));
        tell(&runs, &copy, "a", SourceTrust::UntrustedExternal, 100);
        copy.save(&runs, Some(at(1)), at(1)).unwrap();
        let whole = std::fs::read_to_string(&file).unwrap();
        for cut in 1..=whole.len() - SCHEMA.len() {
            std::fs::write(&file, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(loaded(folder.path(), 2).1, None, "nothing is vouched for: {cut}");
        }
        std::fs::write(&file, format!("{whole}[\"acme\",\"00")).unwrap();
        assert_eq!(loaded(folder.path(), 2).1, Some(at(1)));
        std::fs::write(&file, format!("{whole}\0\0\0\n2000000\n")).unwrap();
        assert_eq!(loaded(folder.path(), 2).1, Some(at(1)), "what came with the zeros vouches for nothing");
        let no_run = format!("{SCHEMA}[\"acme\",\"x\",\"unknown\",2]\n2\n");
        for spoiled in ["", "other\n", no_run.as_str()] {
            std::fs::write(&file, spoiled).unwrap();
            LabelCopy::new(folder.path()).load(&Runs::new(100), at(2)).unwrap_err();
        }
    }

    #[test]
    fn a_copy_that_grows_is_written_anew_and_keeps_what_it_says_of_runs_that_found_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let (runs, copy) = (Runs::new(1), LabelCopy::new(folder.path()));
        for n in 0..200 {
            tell(&runs, &copy, &n.to_string(), SourceTrust::UntrustedExternal, 100);
        }
        copy.save(&runs, Some(at(1)), at(1)).unwrap();
        for _ in 0..20_000 {
            tell(&runs, &copy, "0", SourceTrust::UntrustedExternal, 100);
        }
        copy.save(&runs, Some(at(2)), at(2)).unwrap();
        assert!(std::fs::read_to_string(folder.path().join(FILE)).unwrap().lines().count() < 200);
        let (restored, as_of) = loaded(folder.path(), 50);
        assert_eq!(as_of, Some(at(2)));
        assert!((0..200).all(|n| restored.label(&acme(), &run_key(&n.to_string()), at(50)) >= Some(SourceTrust::Unknown)));
        assert_eq!(restored.label(&acme(), &run_key("0"), at(100)), None);
    }

    #[test]
    fn a_copy_that_cannot_be_written_is_tried_again_with_pauses_and_misses_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("missing");
        let (runs, copy, start) = (Runs::new(100), LabelCopy::new(&folder), Instant::now());
        let save = |after: Duration| copy.save_at(&runs, Some(at(1)), at(1), start + after);
        tell(&runs, &copy, "a", SourceTrust::UntrustedExternal, 100);
        save(Duration::ZERO).unwrap_err();
        save(FIRST_PAUSE).unwrap_err();
        std::fs::create_dir(&folder).unwrap();
        tell(&runs, &copy, "b", SourceTrust::UntrustedExternal, 100);
        save(FIRST_PAUSE * 2).unwrap();
        assert!(!folder.join(FILE).exists() && copy.fresh.lock().is_empty(), "nothing is made, and nothing gathers");
        save(FIRST_PAUSE * 3).unwrap();
        let (restored, as_of) = loaded(&folder, 2);
        let label = |run: &str| restored.label(&acme(), &run_key(run), at(2));
        assert_eq!((as_of, label("a"), label("b")), (Some(at(1)), label("b"), Some(SourceTrust::UntrustedExternal)));
        // It is well again: what comes next is written at once.
        tell(&runs, &copy, "c", SourceTrust::UntrustedExternal, 100);
        save(FIRST_PAUSE * 3).unwrap();
        assert_eq!(loaded(&folder, 2).0.label(&acme(), &run_key("c"), at(2)), Some(SourceTrust::UntrustedExternal));
    }

    #[test]
    fn labels_are_known_once_they_were_read_or_for_as_long_as_a_copy_may_be_gone_by() {
        let told = Told::default();
        assert!(told.is_known(at(0), 0), "nobody else says anything");
        told.await_reading();
        assert!(!told.is_known(at(100), 3600));
        told.restored(at(100));
        assert!(told.is_known(at(3700), 3600) && !told.is_known(at(3701), 3600));
        assert!(!told.is_known(at(100), 0) && !told.is_known(at(101), 0), "no start goes by a copy");
        // What an hour's copy says is not known for a year because the clock was a year ahead when it was written.
        told.restored(at(100 + 365 * 86_400));
        assert!(!told.is_known(at(100), 3600));
        told.restored(at(103));
        assert!(told.is_known(at(100), 3600), "a clock that is corrected a little takes nothing away");
        told.finish_reading();
        assert!(told.is_known(at(1_000_000), 0));
    }
}
