//! What an hour consists of: the one object that is swapped when its rows change.
//! INVARIANT (L-LAKE-ONCE): a row is in the lake when a manifest names its file, and no two files that one manifest names hold the same row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounds::Span;
use crate::error::LakeError;
use crate::layout::Hour;
use crate::swap::{self, Version};

/// The object's name in its hour's folder.
const NAME: &str = "manifest.json";
/// How names of files end.
const FILE: &str = ".parquet";
/// Since when a file is retired that no manifest ever named: nobody reads it.
const NEVER_NAMED: i64 = i64::MIN;
/// The form of manifest and files.
const FORMAT: u32 = 1;
/// Runs of receipts of one lane that an hour remembers; a lane whose receipts come in more pieces is not looked through for repetitions any further.
const MOST_RUNS: usize = 4096;

/// The files of an hour, and what is known of their rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    tenant: String,
    /// Goes up with each name that is given and each time that it is written: no two versions of a manifest have the same bytes. S3 knows a version by
    /// what is in it (an ETag is a hash), and what comes late must not find what it was made from there again.
    pub(crate) generation: u64,
    /// The stream of the bus that it was filled from last, and the sequence up to which the hour has all of its rows.
    pub(crate) stream: String,
    pub(crate) through: u64,
    pub(crate) files: Vec<FileEntry>,
    /// No longer part of the hour; removed once no reader that began before can want them.
    pub(crate) retired: Vec<Retired>,
    /// The receipts that the hour has, by lane: a receipt is one row, however often the bus has it.
    lanes: BTreeMap<String, Runs>,
    /// Which version of the object it was read from, or written as.
    #[serde(skip)]
    version: Version,
    /// True if it retires files that the one in the store does not name.
    #[serde(skip)]
    has_found: bool,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    /// How often its rows have been merged.
    pub(crate) level: u32,
    pub(crate) rows: u64,
    /// Its rows in memory, bytes.
    pub(crate) weight: u64,
    /// Event times of its first row and its last, microseconds since the epoch.
    pub(crate) first_ts: i64,
    pub(crate) last_ts: i64,
}

/// A file that was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Retired {
    pub(crate) name: String,
    /// When, microseconds since the epoch.
    pub(crate) since: i64,
}

/// Sequences as runs of first and last, ascending, with a gap between any two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Runs(Vec<(i64, i64)>);

impl Runs {
    /// True if the sequence was not there; it is then.
    fn take(&mut self, seq: i64) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= seq);
        let before = behind.checked_sub(1);
        if before.is_some_and(|before| self.0[before].1 >= seq) {
            return false;
        }
        let joined = before.filter(|before| self.0[*before].1 + 1 == seq);
        let is_joined_behind = self.0.get(behind).is_some_and(|(first, _)| seq + 1 == *first);
        match (joined, is_joined_behind) {
            (Some(before), true) => {
                self.0[before].1 = self.0[behind].1;
                self.0.remove(behind);
            }
            (Some(before), false) => self.0[before].1 = seq,
            (None, true) => self.0[behind].0 = seq,
            (None, false) if self.0.len() < MOST_RUNS => self.0.insert(behind, (seq, seq)),
            (None, false) => {}
        }
        true
    }
}

impl Manifest {
    fn new(hour: &Hour) -> Self {
        Self {
            format: FORMAT,
            tenant: hour.tenant().to_string(),
            generation: 0,
            stream: String::new(),
            through: 0,
            files: Vec::new(),
            retired: Vec::new(),
            lanes: BTreeMap::new(),
            version: Version::default(),
            has_found: false,
        }
    }

    /// Where an hour's lies.
    pub(crate) fn place(hour: &Hour) -> Path {
        hour.object(NAME)
    }

    /// The hour's manifest; an empty one for an hour that has no rows yet.
    pub(crate) async fn read(store: &Arc<dyn ObjectStore>, hour: &Hour) -> Result<Self, LakeError> {
        let place = Self::place(hour);
        let Some((bytes, version)) = swap::read(store, &place).await? else { return Ok(Self::new(hour)) };
        let mut manifest: Self = serde_json::from_slice(&bytes).map_err(|error| LakeError::damaged(&place, error))?;
        if manifest.format != FORMAT {
            let reason = format!("its form is {}, this program knows {FORMAT}", manifest.format);
            return Err(LakeError::damaged(&place, reason));
        }
        if manifest.tenant != hour.tenant().as_str() {
            return Err(LakeError::damaged(&place, "it is another tenant's"));
        }
        manifest.version = version;
        Ok(manifest)
    }

    /// Puts it in the place of the one that it was read from; refused where there is another by now.
    pub(crate) async fn write(&mut self, store: &Arc<dyn ObjectStore>, hour: &Hour) -> Result<(), LakeError> {
        let place = Self::place(hour);
        self.generation += 1;
        let bytes = serde_json::to_vec(self).map_err(|error| LakeError::damaged(&place, error))?;
        self.version = swap::swap(store, &place, bytes, &self.version).await?;
        self.has_found = false;
        Ok(())
    }

    /// The name of the next file, which none had before: one that is put late changes no file that a manifest names.
    pub(crate) fn next_name(&mut self) -> String {
        self.generation += 1;
        format!("{:010}-{}{FILE}", self.generation, Uuid::now_v7().simple())
    }

    /// True if it is that of an hour whose manifest is gone: only a later one than the first gives such a name as lies there.
    pub(crate) fn is_lost<'a>(&self, mut there: impl Iterator<Item = &'a str>) -> bool {
        let generation = |name: &str| name.split(['-', '.']).next().and_then(|number| number.parse::<u64>().ok());
        !self.version.is_there() && there.any(|name| name.ends_with(FILE) && generation(name) > Some(1))
    }

    /// Retires, of the files that lie in the hour's folder, those that it does not know: a crash left them before a manifest named them. They
    /// may be removed once a manifest that retires them is written, since from then on whoever meant to name them cannot.
    pub(crate) fn retire_unnamed<'a>(&mut self, there: impl Iterator<Item = &'a str>) {
        let named = self.files.iter().map(|file| &file.name).chain(self.retired.iter().map(|file| &file.name));
        let named: BTreeSet<String> = named.cloned().collect();
        let unnamed = there.filter(|name| name.ends_with(FILE) && !named.contains(*name));
        let before = self.retired.len();
        self.retired.extend(unnamed.map(|name| Retired { name: name.to_owned(), since: NEVER_NAMED }));
        self.has_found |= self.retired.len() > before;
    }

    /// True if it retires files that the one in the store does not name.
    pub(crate) const fn has_found(&self) -> bool {
        self.has_found
    }

    /// Takes a receipt into account: false if the hour has it already.
    pub(crate) fn takes_receipt(&mut self, lane: &str, seq: i64) -> bool {
        match self.lanes.get_mut(lane) {
            Some(runs) => runs.take(seq),
            None => self.lanes.entry(lane.to_owned()).or_default().take(seq),
        }
    }

    /// The receipts that the hour has: of each lane, runs of first and last.
    pub(crate) fn receipts(&self) -> impl Iterator<Item = (&str, &[(i64, i64)])> {
        self.lanes.iter().map(|(lane, runs)| (lane.as_str(), runs.0.as_slice()))
    }

    /// The files that may have rows of these times, each with the time of its first.
    pub(crate) fn objects_in_time(&self, hour: &Hour, span: Span) -> Vec<(i64, Path)> {
        let wanted = self.files.iter().filter(|file| span.meets(file.first_ts, file.last_ts));
        wanted.map(|file| (file.first_ts, hour.object(&file.name))).collect()
    }

    /// The files that may have rows of these times.
    pub(crate) fn objects(&self, hour: &Hour, span: Span) -> Vec<Path> {
        self.objects_in_time(hour, span).into_iter().map(|(_, object)| object).collect()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_receipt_is_taken_once_in_any_order(seqs in prop::collection::vec(-20i64..20, 0..60)) {
            let (mut runs, mut known) = (Runs::default(), BTreeSet::new());
            for seq in seqs {
                prop_assert_eq!(runs.take(seq), known.insert(seq));
                for pair in runs.0.windows(2) {
                    prop_assert!(pair[0].1 + 1 < pair[1].0);
                }
                let total: i64 = runs.0.iter().map(|(first, last)| last - first + 1).sum();
                prop_assert_eq!(usize::try_from(total).ok(), Some(known.len()));
            }
        }
    }
}
