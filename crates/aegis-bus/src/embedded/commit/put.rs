//! Values of buckets: compare-and-set, bounds, and the end of old keys.

use aegis_model::Timestamp;
use bytes::Bytes;

use super::{Work, length};
use crate::embedded::kv::KvEntry;
use crate::embedded::schema::signed;
use crate::{Bucket, BusError, MAX_PAYLOAD};

/// Expired keys that one write removes at most.
const EXPIRE_PER_PUT: usize = 16;

impl Work<'_> {
    pub(super) async fn put(
        &mut self,
        bucket: Bucket,
        key: String,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<Result<u64, BusError>, BusError> {
        let b = bucket.index();
        let limits = self.limits.bucket(bucket);
        if value.len() > MAX_PAYLOAD {
            return Ok(Err(BusError::TooLarge { bytes: value.len(), max: MAX_PAYLOAD }));
        }
        if let Some(max_age_s) = limits.max_age_s {
            self.expire(bucket, self.now.plus_seconds(-max_age_s)).await?;
        }
        let current = self.current(bucket, &key);
        let revision = current.as_ref().map_or(0, |entry| entry.revision);
        if expected.is_some_and(|expected| expected != revision) {
            return Ok(Err(BusError::WrongRevision { bucket, key, actual: revision }));
        }
        let more_keys = i64::from(current.is_none());
        let more_bytes = match &current {
            Some(entry) => length(value.len()) - length(entry.value.len()),
            None => length(key.len() + value.len()),
        };
        let (keys, bytes) = {
            let held = self.shared.buckets[b].lock();
            (length(held.len()) + self.kv_growth[b].0 + more_keys, length(held.bytes()) + self.kv_growth[b].1 + more_bytes)
        };
        if (more_keys > 0 && keys > length(limits.max_keys)) || (more_bytes > 0 && bytes > length(limits.max_bytes)) {
            return Ok(Err(BusError::BucketFull { bucket }));
        }

        let revision = self.state.revisions[b] + 1;
        self.state.revisions[b] = revision;
        sqlx::query(
            "INSERT INTO kv (bucket, key, value, revision, updated_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (bucket, key) DO UPDATE SET value = excluded.value, revision = excluded.revision, updated_at = excluded.updated_at",
        )
        .bind(signed(b as u64))
        .bind(&key)
        .bind(value.to_vec())
        .bind(signed(revision))
        .bind(self.now.as_micros())
        .execute(&mut *self.conn)
        .await?;
        self.kv_growth[b].0 += more_keys;
        self.kv_growth[b].1 += more_bytes;
        self.change(bucket, key, Some(KvEntry { value, revision, updated_at: self.now }));
        Ok(Ok(revision))
    }

    async fn expire(&mut self, bucket: Bucket, cutoff: Timestamp) -> Result<(), BusError> {
        let b = bucket.index();
        let old = self.shared.buckets[b].lock().older_than(cutoff, EXPIRE_PER_PUT);
        for key in old {
            // This commit may have written or removed it already.
            let still_old = self.current(bucket, &key).filter(|entry| entry.updated_at < cutoff);
            let Some(entry) = still_old else { continue };
            sqlx::query("DELETE FROM kv WHERE bucket = ?1 AND key = ?2")
                .bind(signed(b as u64))
                .bind(&key)
                .execute(&mut *self.conn)
                .await?;
            self.kv_growth[b].0 -= 1;
            self.kv_growth[b].1 -= length(key.len() + entry.value.len());
            self.change(bucket, key, None);
        }
        Ok(())
    }

    fn current(&self, bucket: Bucket, key: &str) -> Option<KvEntry> {
        match self.kv.get(&(bucket, key.to_owned())) {
            Some(changed) => changed.clone(),
            None => self.shared.buckets[bucket.index()].lock().get(key).cloned(),
        }
    }

    fn change(&mut self, bucket: Bucket, key: String, entry: Option<KvEntry>) {
        self.kv.insert((bucket, key.clone()), entry.clone());
        self.kv_changes.push((bucket, key, entry));
    }
}
