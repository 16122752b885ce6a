//! Where a file's bytes come from: the disk, memory, or a store elsewhere, of which the end is read first, and then the parts that are wanted.
//! Promises that of a file elsewhere no column is fetched that nobody reads, and no group but the one that is read; what it says of itself is
//! checked against its size before anything is asked for.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, GetResultPayload, ObjectStore};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use crate::error::LakeError;

/// So much of a file's end is read at first, bytes: of a small file all, of others where everything is.
const TAIL: u64 = 64 << 10;
/// The largest description of itself that a file may have at its end, bytes.
const MOST_DESCRIPTION: u64 = 64 << 20;
/// Most that is fetched of a group at once, bytes. What the lake writes stays below: a file is made of some 64 MiB of events.
const MOST_OF_GROUP: u64 = 1 << 30;

/// A file that is not read yet. One on this machine is held open: whoever removes its name takes nothing of it.
pub(crate) enum Content {
    OnDisk(File),
    InMemory(Bytes),
    Elsewhere(Elsewhere),
}

impl Content {
    /// Finds a file of a store, and reads it where it is small, else its end where it is not of this machine.
    pub(crate) async fn find(store: &Arc<dyn ObjectStore>, place: &Path) -> Result<Self, LakeError> {
        let options = GetOptions { range: Some(GetRange::Suffix(TAIL)), ..GetOptions::default() };
        let found = store.get_opts(place, options).await?;
        let size = found.meta.size;
        let tail = match found.payload {
            GetResultPayload::File(file, _) if size > TAIL => return Ok(Self::OnDisk(file)),
            _ => found.bytes().await?,
        };
        if tail.len() as u64 == size {
            return Ok(Self::InMemory(tail));
        }
        let store = Arc::clone(store);
        Ok(Self::Elsewhere(Elsewhere { store, place: place.clone(), size, tail, most_of_group: MOST_OF_GROUP }))
    }
}

/// A file of a store that is not of this machine.
pub(crate) struct Elsewhere {
    store: Arc<dyn ObjectStore>,
    place: Path,
    /// Bytes of all of it, and the last of them.
    size: u64,
    tail: Bytes,
    most_of_group: u64,
}

impl Elsewhere {
    /// What it says of itself: its columns, its groups, and where they are.
    pub(crate) async fn description(&self) -> Result<ArrowReaderMetadata, LakeError> {
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&self.tail, self.size) {
            Ok(()) => {}
            Err(ParquetError::NeedMoreData(needed)) => {
                let needed = needed as u64;
                if needed > MOST_DESCRIPTION.min(self.size) {
                    return Err(LakeError::damaged(&self.place, format!("it describes itself in {needed} bytes")));
                }
                let all = self.size - needed..self.size;
                let tail = self.parts(std::slice::from_ref(&all)).await?.pop().unwrap_or_default();
                reader.try_parse_sized(&tail, self.size)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(ArrowReaderMetadata::try_new(Arc::new(reader.finish()?), ArrowReaderOptions::default())?)
    }

    /// The wanted columns of one group.
    pub(crate) async fn group(
        &self,
        description: &ArrowReaderMetadata,
        group: usize,
        wanted: &ProjectionMask,
    ) -> Result<Parts, LakeError> {
        let mut ranges = Vec::new();
        for (leaf, column) in description.metadata().row_group(group).columns().iter().enumerate() {
            if wanted.leaf_included(leaf) {
                let range = self.range_of(column);
                ranges.push(range.ok_or_else(|| LakeError::damaged(&self.place, "a column lies outside of it"))?);
            }
        }
        // Each column lies in the file; but many may say that they are the same bytes.
        let bytes = ranges.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add);
        if bytes > self.most_of_group {
            return Err(LakeError::damaged(&self.place, format!("a group of it has {bytes} bytes")));
        }
        ranges.sort_by_key(|range| range.start);
        let parts = self.parts(&ranges).await?;
        Ok(Parts { size: self.size, parts: ranges.iter().map(|range| range.start).zip(parts).collect() })
    }

    /// Where a column of a group lies. None: nowhere in this file.
    fn range_of(&self, column: &ColumnChunkMetaData) -> Option<Range<u64>> {
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        let (start, length) = (u64::try_from(start).ok()?, u64::try_from(column.compressed_size()).ok()?);
        let end = start.checked_add(length)?;
        (length > 0 && end <= self.size).then_some(start..end)
    }

    /// As many bytes as were asked for of each range.
    async fn parts(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, LakeError> {
        let parts = match self.store.get_ranges(&self.place, ranges).await {
            Ok(parts) => parts,
            Err(Error::NotFound { .. }) => return Err(LakeError::Gone { object: self.place.to_string() }),
            Err(error) => return Err(error.into()),
        };
        let is_whole = |(part, range): (&Bytes, &Range<u64>)| part.len() as u64 == range.end - range.start;
        if parts.len() != ranges.len() || !parts.iter().zip(ranges).all(is_whole) {
            return Err(LakeError::damaged(&self.place, "the store gave less of it than was asked for"));
        }
        Ok(parts)
    }
}

/// Some parts of a file, by where they begin, ascending.
pub(crate) struct Parts {
    size: u64,
    parts: Vec<(u64, Bytes)>,
}

impl Parts {
    /// What there is from a byte of the file on.
    fn behind(&self, start: u64) -> Result<Bytes, ParquetError> {
        let after = self.parts.partition_point(|(first, _)| *first <= start);
        let found = after.checked_sub(1).and_then(|place| {
            let (first, part) = &self.parts[place];
            let skipped = usize::try_from(start - first).ok()?;
            (skipped <= part.len()).then(|| part.slice(skipped..))
        });
        found.ok_or_else(|| ParquetError::EOF(format!("byte {start} is of no column that was asked for")))
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Parts {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.behind(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let there = self.behind(start)?;
        if length > there.len() {
            return Err(ParquetError::EOF(format!("{length} bytes from byte {start} on are more than was asked for")));
        }
        Ok(there.slice(..length))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::file::encode;
    use crate::watched::Watched;
    use aegis_detect::EventBatch;
    use aegis_model::{EventKind, SecurityEvent, TenantId, Timestamp};
    use object_store::ObjectStoreExt;
    use object_store::PutPayload;

    #[tokio::test]
    async fn no_more_of_a_group_is_fetched_than_may_be() {
        let event = |micros: i64| {
            let (tenant, ts) = (TenantId::new("t").unwrap(), Timestamp::from_micros(micros));
            Arc::new(SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, ts))
        };
        let rows = EventBatch::new((0..20_000).map(event).collect()).to_record_batch().unwrap();
        let (store, seen) = Watched::new();
        let place = Path::from("file.parquet");
        store.put(&place, PutPayload::from(encode([Ok(rows)]).unwrap().bytes)).await.unwrap();
        let store: Arc<dyn ObjectStore> = store;
        let Content::Elsewhere(mut file) = Content::find(&store, &place).await.unwrap() else { panic!("it is read at once") };
        let description = file.description().await.unwrap();
        let before = seen.lock().bytes;
        file.most_of_group = 1000;
        let refused = file.group(&description, 0, &ProjectionMask::all()).await;
        assert!(matches!(refused, Err(LakeError::Damaged { .. })));
        assert_eq!(seen.lock().bytes, before, "nothing of it is fetched");
        file.most_of_group = MOST_OF_GROUP;
        assert!(file.group(&description, 0, &ProjectionMask::all()).await.is_ok());
    }

    #[test]
    fn parts_give_what_they_have_and_nothing_else() {
        let parts = Parts { size: 100, parts: vec![(10, Bytes::from_static(b"abc")), (13, Bytes::from_static(b"def"))] };
        assert_eq!(parts.len(), 100);
        assert_eq!(parts.get_bytes(11, 2).unwrap(), "bc");
        assert_eq!(parts.get_bytes(13, 3).unwrap(), "def");
        for (start, length) in [(9, 1), (11, 3), (13, 4), (17, 1), (0, 1)] {
            assert!(parts.get_bytes(start, length).is_err(), "{length} from {start}");
        }
        assert!(parts.get_read(9).is_err());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut parts.get_read(14).unwrap(), &mut text).unwrap();
        assert_eq!(text, "ef");
    }
}
