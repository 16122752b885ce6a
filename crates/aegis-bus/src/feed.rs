//! How an edge asks control for what a bucket holds: a request on `feed.<edge>`, answered page by page. Entries are signed, so that it does not
//! matter who answers; who may ask for what is control's to check.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Bucket, Bus, BusError, MAX_PAYLOAD, subject};

/// Values of a page of several entries, bytes.
const PAGE_BYTES: usize = MAX_PAYLOAD / 2;
/// Entries of a page.
const PAGE_ENTRIES: usize = 1024;
/// Largest entry, with its key, that a page of its own can bring below the server's bound of a message.
pub const MAX_ENTRY: usize = MAX_PAYLOAD - 4096;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedRequest {
    /// `control`, `containment` or `trust`.
    pub bucket: String,
    /// Which keys.
    pub filter: String,
    /// Only keys behind this one.
    #[serde(default)]
    pub after: String,
}

/// How far control's history has some lanes: what an edge asks on the same subject, to ship again what was lost at the end of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneRequest {
    /// At most `MOST_LANES`. Those of others are left out of the answer, whose values are the greatest seq of each lane, as text.
    pub lanes: Vec<String>,
}

/// An edge asks on the same subject that control confirms, on `lake.<edge>`, how far history and lake have some lanes. The page that answers says whether
/// it was told: it is empty, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// At most `MOST_LANES`.
    pub confirm: Vec<String>,
    /// Comes back with what is confirmed; `MOST_NONCE` bytes at most.
    pub nonce: String,
}

/// Longest nonce of a request, bytes.
pub const MOST_NONCE: usize = 64;

/// Lanes of one request.
pub const MOST_LANES: usize = 256;

/// One page of the answer. As sent: a line of JSON, and behind it the values one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedPage {
    /// Key, value and revision, sorted by key.
    pub entries: Vec<(String, Bytes, u64)>,
    /// True if there are keys behind the last one.
    pub more: bool,
    /// Why nothing is told.
    pub refused: Option<String>,
}

/// The line before the values.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Head {
    /// Key, bytes of its value, and revision.
    entries: Vec<(String, usize, u64)>,
    #[serde(default)]
    more: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl FeedPage {
    /// A page that says why it is empty.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { refused: Some(reason.into()), ..Self::default() }
    }

    /// As it is sent.
    pub fn write(&self) -> Result<Bytes, BusError> {
        let entries = self.entries.iter().map(|(key, value, revision)| (key.clone(), value.len(), *revision)).collect();
        let head = Head { entries, more: self.more, refused: self.refused.clone() };
        let mut bytes = serde_json::to_vec(&head).map_err(|error| BusError::invalid("feed page", error.to_string()))?;
        bytes.push(b'\n');
        self.entries.iter().for_each(|(_, value, _)| bytes.extend_from_slice(value));
        Ok(bytes.into())
    }

    /// Reads what was sent.
    pub fn read(bytes: &Bytes) -> Result<Self, BusError> {
        let bad = |reason: &str| BusError::invalid("feed page", reason);
        let line = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| bad("it has no first line"))?;
        let head: Head = serde_json::from_slice(&bytes[..line]).map_err(|error| bad(&error.to_string()))?;
        let (mut at, mut entries) = (line + 1, Vec::with_capacity(head.entries.len()));
        for (key, length, revision) in head.entries {
            let end = at.checked_add(length).filter(|end| *end <= bytes.len()).ok_or_else(|| bad("a value is cut off"))?;
            entries.push((key, bytes.slice(at..end), revision));
            at = end;
        }
        Ok(Self { entries, more: head.more, refused: head.refused })
    }
}

impl FeedRequest {
    /// Which bucket is asked for, if it is one of the control feed's.
    #[must_use]
    pub fn bucket(&self) -> Option<Bucket> {
        [Bucket::Control, Bucket::Containment, Bucket::Trust].into_iter().find(|bucket| bucket.as_str() == self.bucket)
    }
}

/// The page of a bucket that a request asks for. The caller has checked that whoever asks may see these keys.
pub async fn page(bus: &dyn Bus, request: &FeedRequest) -> Result<FeedPage, BusError> {
    let Some(bucket) = request.bucket() else {
        return Ok(FeedPage::refused("there is no such bucket in the control feed"));
    };
    if subject::check_filter(&request.filter).is_err() {
        return Ok(FeedPage::refused("the filter is not valid"));
    }
    let held = bus.kv_all(bucket, &request.filter).await?;
    let entries = held.iter().map(|(key, value, revision)| (key.as_str(), value.clone(), *revision));
    Ok(fill(bucket, entries.filter(|(key, ..)| *key > request.after.as_str())))
}

/// A page of as many of these entries, sorted by key, as it has room for.
pub fn fill<'a>(bucket: Bucket, entries: impl Iterator<Item = (&'a str, Bytes, u64)>) -> FeedPage {
    let mut page = FeedPage::default();
    let mut bytes = 0;
    for (key, value, revision) in entries {
        let length = key.len() + value.len();
        if length > MAX_ENTRY {
            // Not passed over: an edge that did not know of it would believe that it knows everything.
            return FeedPage::refused(format!("the entry {key} of {bucket} is too large, {length} bytes"));
        }
        if !page.entries.is_empty() && (bytes + length > PAGE_BYTES || page.entries.len() == PAGE_ENTRIES) {
            page.more = true;
            break;
        }
        bytes += length;
        page.entries.push((key.to_owned(), value, revision));
    }
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_written_and_nothing_cut_off_is() {
        let entries = vec![("a.b".to_owned(), Bytes::from_static(b"{\"x\":\n1}"), 3), ("a.c".to_owned(), Bytes::new(), 4)];
        let page = FeedPage { entries, more: true, refused: None };
        let bytes = page.write().unwrap();
        assert_eq!(FeedPage::read(&bytes).unwrap(), page);
        for end in 0..bytes.len() {
            FeedPage::read(&bytes.slice(..end)).unwrap_err();
        }
        FeedPage::read(&Bytes::from_static(b"{\"entries\":[[\"a\",18446744073709551615,1]]}\nx")).unwrap_err();
    }
}
