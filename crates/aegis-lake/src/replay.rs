//! One tenant's rows as events in the order of events, file by file and group by group: what a backtest and an explanation are shown.
//! Promises that each event comes once however often it was delivered, that memory has some groups of rows of the files of an hour and no more, and that
//! files which are merged and removed meanwhile are read all the same. No row of another tenant is shown (L-TENANT).

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::sync::Arc;

use aegis_detect::{events_of, events_schema};
use aegis_model::{EventId, SecurityEvent, TenantId};
use bytes::Bytes;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt};

use crate::bounds::Span;
use crate::error::LakeError;
use crate::file::Rows;
use crate::layout::{Hour, hours};
use crate::manifest::Manifest;
use crate::recent::Recent;

/// Events that are given at once, about.
const EVENTS: usize = 2048;
/// Observations that are remembered to know one that was delivered again: some 60 MiB at most.
const MOST_OBSERVED: usize = 1 << 20;

/// What was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub hours: u64,
    pub files: u64,
    /// Rows that were left out because their event had come before.
    pub repeated: u64,
}

/// One tenant's events on their way.
pub struct Replay {
    store: Arc<dyn ObjectStore>,
    tenant: TenantId,
    schema: SchemaRef,
    span: Span,
    /// Of which the files are not known yet, ascending.
    hours: VecDeque<Hour>,
    /// Files of which no row is due yet, by the time of their first.
    later: VecDeque<(i64, Object)>,
    files: Vec<OpenFile>,
    observed: Recent,
    read: Replayed,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("tenant", &self.tenant)
            .field("span", &self.span)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

/// A file that is not read yet. One on this machine is held open: whoever removes its name takes nothing of it.
struct Object {
    name: Path,
    content: Content,
}

enum Content {
    OnDisk(File),
    InMemory(Bytes),
}

/// A file, and its events that are read and not given. It has none of those only when it is over.
struct OpenFile {
    name: Path,
    rows: Rows,
    events: VecDeque<SecurityEvent>,
}

impl Replay {
    /// Opens a tenant's rows of some times, with some columns alone; without `columns`, with all.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        tenant: &TenantId,
        columns: Option<&BTreeSet<&'static str>>,
        span: Span,
    ) -> Result<Self, LakeError> {
        let all = events_schema();
        let wanted = |name: &str| columns.is_none_or(|columns| columns.contains(name));
        let places: Vec<usize> = (0..all.fields().len()).filter(|place| wanted(all.field(*place).name())).collect();
        let schema = Arc::new(all.project(&places)?);
        let (astray, hours): (Vec<Hour>, Vec<Hour>) =
            hours(&store, tenant).await?.into_iter().filter(|hour| hour.meets(span)).partition(|hour| hour.start().is_none());
        let mut replay = Self {
            store,
            tenant: tenant.clone(),
            schema,
            span,
            hours: hours.into(),
            later: VecDeque::new(),
            files: Vec::new(),
            observed: Recent::new(MOST_OBSERVED),
            read: Replayed::default(),
        };
        // Of any time.
        for folder in astray {
            replay.find_files(&folder).await?;
        }
        Ok(replay)
    }

    /// What was read so far.
    #[must_use]
    pub const fn read(&self) -> Replayed {
        self.read
    }

    /// The next events. None: that was all.
    pub async fn next(&mut self) -> Result<Option<Vec<SecurityEvent>>, LakeError> {
        let mut events: Vec<SecurityEvent> = Vec::with_capacity(EVENTS);
        loop {
            self.open_due().await?;
            let Some(place) = self.first() else { break };
            let alone_before = self.alone_before(place);
            let mut is_first = true;
            while let Some(head) = self.files[place].events.front() {
                if !is_first && head.ts.as_micros() >= alone_before {
                    break;
                }
                // What is the same event is not given apart.
                let is_full = events.len() >= EVENTS;
                if is_full && events.last().is_none_or(|last| last.order_key() != head.order_key()) {
                    return Ok(Some(events));
                }
                is_first = false;
                if let Some(event) = self.files[place].take(&self.tenant, self.span)? {
                    self.give(event, &mut events);
                }
            }
            if self.files[place].events.is_empty() {
                self.files.swap_remove(place);
            }
        }
        Ok((!events.is_empty()).then_some(events))
    }

    /// Opens the files that may have the next event.
    async fn open_due(&mut self) -> Result<(), LakeError> {
        loop {
            let head = self.first().and_then(|place| self.files[place].events.front()).map(|event| event.ts.as_micros());
            let later = self.later.front().map(|(first_ts, _)| *first_ts);
            let next = head.into_iter().chain(later).min();
            let is_due = |hour: &Hour| next.is_none_or(|next| hour.start().is_none_or(|start| start <= next));
            if self.hours.front().is_some_and(is_due) {
                if let Some(hour) = self.hours.pop_front() {
                    self.find_files(&hour).await?;
                }
                continue;
            }
            if !later.is_some_and(|later| head.is_none_or(|head| later <= head)) {
                return Ok(());
            }
            if let Some((_, object)) = self.later.pop_front() {
                let file = OpenFile::open(object, &self.schema, &self.tenant, self.span)?;
                self.read.files += 1;
                if !file.events.is_empty() {
                    self.files.push(file);
                }
            }
        }
    }

    /// Takes up the files of an hour, as its manifest has them now.
    async fn find_files(&mut self, hour: &Hour) -> Result<(), LakeError> {
        let manifest = Manifest::read(&self.store, hour).await?;
        self.read.hours += 1;
        for (first_ts, name) in manifest.objects_in_time(hour, self.span) {
            let found = self.store.get(&name).await?;
            let content = match found.payload {
                GetResultPayload::File(file, _) => Content::OnDisk(file),
                GetResultPayload::Stream(_) => Content::InMemory(found.bytes().await?),
            };
            self.later.push_back((first_ts, Object { name, content }));
        }
        self.later.make_contiguous().sort_by_key(|(first_ts, _)| *first_ts);
        Ok(())
    }

    /// The open file with the first event.
    fn first(&self) -> Option<usize> {
        let key = |place: &usize| self.files[*place].events.front().map(SecurityEvent::order_key);
        (0..self.files.len()).min_by(|a, b| key(a).cmp(&key(b)))
    }

    /// Before this time no other file has anything, microseconds since the epoch.
    fn alone_before(&self, place: usize) -> i64 {
        let others = self.files.iter().enumerate().filter(|(other, _)| *other != place);
        let heads = others.filter_map(|(_, file)| file.events.front()).map(|event| event.ts.as_micros());
        let later = self.later.front().map(|(first_ts, _)| *first_ts);
        let hour = self.hours.front().and_then(Hour::start);
        heads.chain(later).chain(hour).min().unwrap_or(i64::MAX)
    }

    /// Adds the next event, unless it is there.
    fn give(&mut self, event: SecurityEvent, events: &mut Vec<SecurityEvent>) {
        if let Some(last) = events.last_mut()
            && last.order_key() == event.order_key()
        {
            self.read.repeated += 1;
            // Of a receipt, and of what says that it is that one and proves nothing, the receipt.
            if event.verified && !last.verified {
                *last = event;
            }
            return;
        }
        // An observation that was delivered again may have another time, and lie in another hour.
        if event.lane.is_none() && !self.observed.takes(&event.tenant_id, event.event_id) {
            self.read.repeated += 1;
            return;
        }
        events.push(event);
    }
}

impl OpenFile {
    fn open(object: Object, schema: &SchemaRef, tenant: &TenantId, span: Span) -> Result<Self, LakeError> {
        let rows = match object.content {
            Content::OnDisk(file) => Rows::open(file, schema, span)?,
            Content::InMemory(bytes) => Rows::open(bytes, schema, span)?,
        };
        let mut file = Self { name: object.name, rows, events: VecDeque::new() };
        file.fill(tenant, span)?;
        Ok(file)
    }

    /// The first of its events.
    fn take(&mut self, tenant: &TenantId, span: Span) -> Result<Option<SecurityEvent>, LakeError> {
        let taken = self.events.pop_front();
        self.fill(tenant, span)?;
        Ok(taken)
    }

    /// Reads on where nothing is left.
    fn fill(&mut self, tenant: &TenantId, span: Span) -> Result<(), LakeError> {
        while self.events.is_empty() {
            let Some(batch) = self.rows.next() else { return Ok(()) };
            let mut events = events_of(&batch?).map_err(|error| LakeError::damaged(&self.name, error))?;
            if events.iter().any(|event| event.tenant_id != *tenant) {
                return Err(LakeError::damaged(&self.name, "it has rows of another tenant"));
            }
            events.retain(|event| span.meets(event.ts.as_micros(), event.ts.as_micros()));
            self.events = events.into();
        }
        Ok(())
    }
}

/// The event of this id, as a replay gives it: of several the one that proved itself, else the first. None: the tenant's part of the lake has none.
pub async fn find(
    store: &Arc<dyn ObjectStore>,
    tenant: &TenantId,
    event_id: EventId,
) -> Result<Option<SecurityEvent>, LakeError> {
    let all = events_schema();
    let (wanted, text) = (["event_id", "ts", "verified"], event_id.to_string());
    let places = wanted.into_iter().map(|name| all.index_of(name)).collect::<Result<Vec<usize>, _>>()?;
    let schema: SchemaRef = Arc::new(all.project(&places)?);
    let mut found: Option<(bool, i64)> = None;
    for hour in hours(store, tenant).await? {
        let manifest = Manifest::read(store, &hour).await?;
        for name in manifest.objects(&hour, Span::ALL) {
            let bytes = store.get(&name).await?.bytes().await?;
            for batch in Rows::open(bytes, &schema, Span::ALL)? {
                let batch = batch?;
                let ids = batch.column(0).as_string::<i32>();
                let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
                let verified = batch.column(2).as_boolean();
                for row in (0..batch.num_rows()).filter(|row| ids.value(*row) == text) {
                    let one = (!verified.value(row), times.value(row));
                    found = Some(found.map_or(one, |known| known.min(one)));
                }
            }
        }
    }
    let Some((_, ts)) = found else { return Ok(None) };
    let mut replay = Replay::open(Arc::clone(store), tenant, None, Span { from: ts, to: ts }).await?;
    while let Some(events) = replay.next().await? {
        let mut of_id: Vec<SecurityEvent> = events.into_iter().filter(|event| event.event_id == event_id).collect();
        of_id.sort_by_key(|event| !event.verified);
        if let Some(event) = of_id.into_iter().next() {
            return Ok(Some(event));
        }
    }
    Ok(None)
}
