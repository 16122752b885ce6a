//! Old hours go: first out of their manifest, so that nobody finds their rows any more, and once no reader that began before can want the files, those and
//! the manifest too. Promises that no hour goes of which rows wait to be written, which is not merged as far as it will be, or of which the noted
//! position has not passed all: what may be read again from the bus is still there to be known.

use std::collections::VecDeque;

use aegis_model::Timestamp;

use crate::error::LakeError;
use crate::layout::{Hour, hours, tenants};
use crate::manifest::Retired;
use crate::writer::Writer;

/// All hours are looked through this often, microseconds.
const LOOK_EVERY: i64 = 3_600_000_000;

/// Hours that are old, and when it was looked for them.
#[derive(Debug, Default)]
pub(crate) struct Old {
    hours: VecDeque<Hour>,
    looked: Option<Timestamp>,
}

impl Writer {
    /// Takes hours that ended more than `keep_micros` before `now` out of the lake, at most so many; everything up to `noted` on the bus is written, and
    /// the position says so. Answers how many old hours it looked at: there may be more as long as it is not none. What is astray is of no hour, and stays.
    pub async fn expire(&mut self, now: Timestamp, keep_micros: i64, noted: u64, most: usize) -> Result<usize, LakeError> {
        let is_due = self.old.looked.is_none_or(|looked| now >= looked.plus_micros(LOOK_EVERY) || now < looked);
        if self.old.hours.is_empty() && is_due {
            self.old.looked = Some(now);
            let is_old = |hour: &Hour| hour.end().is_some_and(|end| end.plus_micros(keep_micros) <= now);
            for tenant in tenants(&self.store).await? {
                self.old.hours.extend(hours(&self.store, &tenant).await?.into_iter().filter(is_old));
            }
        }
        let mut looked_at = 0;
        while looked_at < most {
            let Some(hour) = self.old.hours.pop_front() else { break };
            looked_at += 1;
            if let Err(error) = self.expire_hour(&hour, now, noted).await {
                tracing::warn!(hour = hour.folder(), %error, "an old hour of the lake stays");
                return Err(error);
            }
        }
        Ok(looked_at)
    }

    async fn expire_hour(&mut self, hour: &Hour, now: Timestamp, noted: u64) -> Result<(), LakeError> {
        let mut manifest = self.manifest(hour).await?;
        let is_passed = manifest.stream != self.stream() || manifest.through <= noted;
        if self.waits(hour) || !is_passed {
            return Ok(());
        }
        if !manifest.is_tidy(hour) {
            self.unfinished.insert(hour.clone());
            return Ok(());
        }
        if manifest.files.is_empty() {
            return self.remove(hour).await;
        }
        tracing::info!(hour = hour.folder(), rows = manifest.rows(), "an hour of the lake is as old as may be, and goes");
        let files = std::mem::take(&mut manifest.files);
        manifest.retired.extend(files.into_iter().map(|file| Retired { name: file.name, since: now.as_micros() }));
        self.commit(hour, manifest).await
    }
}
