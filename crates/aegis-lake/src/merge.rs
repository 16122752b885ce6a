//! Many small files of an hour become a large one, and what they were is removed once no query can want it.
//! INVARIANT (L-LAKE-ONCE): the new file is written, then the manifest is swapped, then the old ones go: at each moment the hour is its rows, once.

use std::collections::BTreeMap;

use aegis_detect::events_schema;
use aegis_model::Timestamp;
use object_store::ObjectStoreExt;

use crate::bounds::Span;
use crate::content::Content;
use crate::error::LakeError;
use crate::file::{Rows, encode, in_order};
use crate::layout::Hour;
use crate::manifest::{FileEntry, Manifest, Retired};
use crate::query::QUERY_SECONDS;
use crate::swap;
use crate::writer::Writer;

/// So many files of one level become one of the next: a row is written again once a level, not once a file.
const FAN: usize = 8;
/// Most that is merged at once: rows, and bytes in memory.
const MOST_ROWS: u64 = 500_000;
const MOST_WEIGHT: u64 = 64 << 20;
/// How long after its end an hour's files are merged whatever their number, seconds: receipts still come when an edge was cut off.
const SETTLED_S: i64 = 2 * 3600;
/// How long a replaced file stays, seconds: longer than a query may take.
const GRACE_S: i64 = 2 * QUERY_SECONDS as i64;

impl Manifest {
    /// True if nothing is left to merge, now or once the hour is over, and nothing to remove.
    pub(crate) fn is_tidy(&self, hour: &Hour) -> bool {
        self.retired.is_empty() && self.to_merge(hour.end().is_some()).is_none()
    }

    /// The places of files to make one of. `all`: whatever their levels.
    fn to_merge(&self, all: bool) -> Option<Vec<usize>> {
        let mut levels: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (place, file) in self.files.iter().enumerate() {
            levels.entry(file.level).or_default().push(place);
        }
        let full = levels.into_values().map(|places| self.fitting(places)).find(|fitting| fitting.len() >= FAN);
        if full.is_some() || !all {
            return full;
        }
        let fitting = self.fitting((0..self.files.len()).collect());
        (fitting.len() >= 2).then_some(fitting)
    }

    /// The smallest of these files, as many as may be merged at once.
    fn fitting(&self, mut places: Vec<usize>) -> Vec<usize> {
        places.sort_by_key(|place| self.files[*place].weight);
        let (mut rows, mut weight) = (0, 0);
        let fits = |place: &&usize| {
            let file = &self.files[**place];
            rows += file.rows;
            weight += file.weight;
            rows <= MOST_ROWS && weight <= MOST_WEIGHT
        };
        places.iter().take_while(fits).copied().collect()
    }
}

impl Writer {
    /// Merges and removes what is due, in at most so many hours. Answers how many files it merged and removed. An hour that cannot be tidied keeps
    /// no other waiting, and is tried again the next time: the first error is the answer.
    pub async fn tidy(&mut self, now: Timestamp, most: usize) -> Result<usize, LakeError> {
        let hours: Vec<Hour> = self.unfinished.iter().cloned().collect();
        let (mut tidied, mut changed) = (0, 0);
        let mut failure = None;
        for hour in hours {
            match self.tidy_hour(&hour, now).await {
                Ok(files) => {
                    tidied += files;
                    changed += usize::from(files > 0);
                }
                Err(error) => {
                    // Somebody else may have changed it.
                    self.ask_again(&hour);
                    tracing::warn!(hour = hour.folder(), %error, "an hour of the lake cannot be tidied");
                    failure = failure.or(Some(error));
                }
            }
            if changed >= most {
                break;
            }
        }
        failure.map_or(Ok(tidied), Err)
    }

    async fn tidy_hour(&mut self, hour: &Hour, now: Timestamp) -> Result<usize, LakeError> {
        let mut manifest = self.manifest(hour).await?;
        if manifest.has_found() {
            // Written before anything of it is removed: whoever meant to name one of these files cannot any more.
            self.commit(hour, manifest).await?;
            manifest = self.manifest(hour).await?;
        }
        let mut tidied = 0;
        let due = |file: &Retired| file.since <= now.plus_seconds(-GRACE_S).as_micros();
        if manifest.retired.iter().any(due) {
            for file in manifest.retired.iter().filter(|file| due(file)) {
                match self.store.delete(&hour.object(&file.name)).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => tidied += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            manifest.retired.retain(|file| !due(file));
            self.commit(hour, manifest).await?;
            manifest = self.manifest(hour).await?;
        }
        let is_settled = hour.end().is_some_and(|end| now >= end.plus_seconds(SETTLED_S));
        if let Some(places) = manifest.to_merge(is_settled) {
            tidied += places.len();
            self.merge(hour, manifest, &places, now).await?;
        } else if manifest.is_tidy(hour) {
            self.unfinished.remove(hour);
        }
        Ok(tidied)
    }

    async fn merge(&mut self, hour: &Hour, mut manifest: Manifest, places: &[usize], now: Timestamp) -> Result<(), LakeError> {
        let mut batches = Vec::new();
        let (mut merged, mut kept): (Vec<FileEntry>, Vec<FileEntry>) = (Vec::new(), Vec::new());
        for (place, file) in manifest.files.iter().enumerate() {
            if !places.contains(&place) {
                kept.push(file.clone());
                continue;
            }
            let object = hour.object(&file.name);
            let Some((bytes, _)) = swap::read(&self.store, &object).await? else {
                return Err(LakeError::damaged(object, "it is not there, and its manifest names it"));
            };
            let mut rows = 0;
            let mut read = Rows::open(Content::InMemory(bytes), &events_schema(), Span::ALL).await?;
            while let Some(batch) = read.next().await? {
                rows += batch.num_rows() as u64;
                batches.push(batch);
            }
            if rows != file.rows {
                return Err(LakeError::damaged(object, format!("it has {rows} rows, not {}", file.rows)));
            }
            merged.push(file.clone());
        }
        let rows = in_order(&batches)?;
        let level = merged.iter().map(|file| file.level).max().unwrap_or(0) + 1;
        let first_ts = merged.iter().map(|file| file.first_ts).min().unwrap_or(i64::MIN);
        let last_ts = merged.iter().map(|file| file.last_ts).max().unwrap_or(i64::MAX);
        let name = manifest.next_name();
        let entry = self.put(hour, name, encode([Ok(rows)])?, level, (first_ts, last_ts)).await?;
        kept.push(entry);
        manifest.files = kept;
        manifest.retired.extend(merged.into_iter().map(|file| Retired { name: file.name, since: now.as_micros() }));
        self.commit(hour, manifest).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn manifest(files: &[(u32, u64)]) -> Manifest {
        let mut entries = Vec::new();
        for (level, rows) in files {
            let (name, weight) = (entries.len().to_string(), rows * 100);
            entries.push(FileEntry { name, level: *level, rows: *rows, weight, first_ts: 0, last_ts: 1 });
        }
        let text = serde_json::json!({
            "format": 1, "tenant": "t", "generation": 1, "stream": "s", "through": 0, "files": entries, "retired": [], "lanes": {},
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn files_of_one_level_are_merged_when_there_are_enough_and_all_when_the_hour_is_over() {
        assert_eq!(manifest(&[(0, 5); 7]).to_merge(false), None);
        assert_eq!(manifest(&[(0, 5); 8]).to_merge(false), Some((0..8).collect()));
        let mixed = manifest(&[(1, 500), (0, 5), (0, 5)]);
        assert_eq!(mixed.to_merge(false), None);
        assert_eq!(mixed.to_merge(true), Some(vec![1, 2, 0]));
        assert_eq!(manifest(&[(3, 5)]).to_merge(true), None);
    }

    #[test]
    fn no_merge_takes_more_than_fits() {
        let large = manifest(&[(0, 400_000), (0, 400_000), (0, 1)]);
        assert_eq!(large.to_merge(true), Some(vec![2, 0]));
        assert_eq!(manifest(&[(2, 400_000), (2, 400_000)]).to_merge(true), None);
        assert_eq!(manifest(&[(0, 100_000); 20]).to_merge(false), None, "five fit, and eight are wanted");
        assert_eq!(manifest(&[(0, 100_000); 20]).to_merge(true), Some((0..5).collect()));
    }
}
