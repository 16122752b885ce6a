//! One tenant's rows as events in the order of events, file by file and group by group: what a backtest and an explanation are shown.
//! Promises that each event comes once however often it was delivered, that memory has some groups of rows of the files of an hour and no more, and that
//! files on this machine which are merged and removed meanwhile are read all the same; one that is gone from a store elsewhere is told of. No row of
//! another tenant is shown (L-TENANT).

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use aegis_detect::{Sieve, events_of, events_schema};
use aegis_model::{EventId, SecurityEvent, TenantId};
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::bounds::Span;
use crate::content::Content;
use crate::error::LakeError;
use crate::file::Rows;
use crate::layout::{Hour, hours};
use crate::manifest::Manifest;
use crate::recent::Recent;

/// Events that are given at once, about.
const EVENTS: usize = 2048;
/// Observations that are remembered to know one that was delivered again: some 60 MiB at most.
const MOST_OBSERVED: usize = 1 << 19;

/// What was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub hours: u64,
    pub files: u64,
    /// Rows that were left out because their event had come before.
    pub repeated: u64,
}

/// Which rows are wanted.
struct Wanted {
    tenant: TenantId,
    schema: SchemaRef,
    span: Span,
    sieve: Option<Arc<Sieve>>,
}

/// One tenant's events on their way.
pub struct Replay {
    store: Arc<dyn ObjectStore>,
    wanted: Wanted,
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
        let Wanted { tenant, span, .. } = &self.wanted;
        f.debug_struct("Replay").field("tenant", tenant).field("span", span).field("read", &self.read).finish_non_exhaustive()
    }
}

/// A file that is not read yet.
struct Object {
    name: Path,
    content: Content,
}

/// A file, and its events that are read and not given. It has none of those only when it is over.
struct OpenFile {
    name: Path,
    rows: Rows,
    events: VecDeque<Arc<SecurityEvent>>,
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
        let is_wanted = |name: &str| columns.is_none_or(|columns| columns.contains(name));
        let places: Vec<usize> = (0..all.fields().len()).filter(|place| is_wanted(all.field(*place).name())).collect();
        let schema = Arc::new(all.project(&places)?);
        let (astray, hours): (Vec<Hour>, Vec<Hour>) =
            hours(&store, tenant).await?.into_iter().filter(|hour| hour.meets(span)).partition(|hour| hour.start().is_none());
        let mut replay = Self {
            store,
            wanted: Wanted { tenant: tenant.clone(), schema, span, sieve: None },
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

    /// The same without what a sieve leaves out. To be said before anything is given.
    #[must_use]
    pub fn sifted_by(mut self, sieve: &Arc<Sieve>) -> Self {
        self.wanted.sieve = Some(Arc::clone(sieve));
        self
    }

    /// What was read so far.
    #[must_use]
    pub const fn read(&self) -> Replayed {
        self.read
    }

    /// The next events. None: that was all.
    pub async fn next(&mut self) -> Result<Option<Vec<Arc<SecurityEvent>>>, LakeError> {
        let mut events: Vec<Arc<SecurityEvent>> = Vec::with_capacity(EVENTS);
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
                let file = &mut self.files[place];
                let taken = file.events.pop_front();
                if file.events.is_empty() {
                    file.fill(&self.wanted).await?;
                }
                if let Some(event) = taken {
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
            if later.is_none_or(|later| head.is_some_and(|head| later > head)) {
                return Ok(());
            }
            if let Some((_, object)) = self.later.pop_front() {
                let file = OpenFile::open(object, &self.wanted).await?;
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
        for (first_ts, name) in manifest.objects_in_time(hour, self.wanted.span) {
            let content = Content::find(&self.store, &name).await?;
            self.later.push_back((first_ts, Object { name, content }));
        }
        self.later.make_contiguous().sort_by_key(|(first_ts, _)| *first_ts);
        Ok(())
    }

    /// The open file with the first event.
    fn first(&self) -> Option<usize> {
        let key = |place: &usize| self.files[*place].events.front().map(|event| event.order_key());
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
    fn give(&mut self, event: Arc<SecurityEvent>, events: &mut Vec<Arc<SecurityEvent>>) {
        let is_there = in_its_place(events, &event).any(|known| known.verified == event.verified);
        // An observation that was delivered again may have another time, and lie in another hour.
        if is_there || (event.lane.is_none() && !self.observed.takes(&event.tenant_id, event.event_id)) {
            self.read.repeated += 1;
            return;
        }
        // What says that it is a receipt and proves nothing is a row of its own, behind it.
        let behind = if event.verified { in_its_place(events, &event).count() } else { 0 };
        let place = events.len() - behind;
        events.insert(place, event);
    }
}

/// Those at the end of events in order that have the same place as the next one.
fn in_its_place<'a>(events: &'a [Arc<SecurityEvent>], next: &'a SecurityEvent) -> impl Iterator<Item = &'a Arc<SecurityEvent>> {
    events.iter().rev().take_while(move |known| known.order_key() == next.order_key())
}

impl OpenFile {
    async fn open(object: Object, wanted: &Wanted) -> Result<Self, LakeError> {
        let rows = Rows::open(object.content, &wanted.schema, wanted.span).await?;
        let mut file = Self { name: object.name, rows, events: VecDeque::new() };
        file.fill(wanted).await?;
        Ok(file)
    }

    /// Reads on where nothing is left.
    async fn fill(&mut self, wanted: &Wanted) -> Result<(), LakeError> {
        while self.events.is_empty() {
            let Some(batch) = self.rows.next().await? else { return Ok(()) };
            let in_time = within(&batch, wanted.span);
            let rows = match &wanted.sieve {
                Some(sieve) => sieve.sift(in_time),
                None => in_time,
            };
            let events = events_of(&rows).map_err(|error| LakeError::damaged(&self.name, error))?;
            if events.iter().any(|event| event.tenant_id != wanted.tenant) {
                return Err(LakeError::damaged(&self.name, "it has rows of another tenant"));
            }
            self.events = events.into();
        }
        Ok(())
    }
}

/// Those of the rows, which are in the order of time, that are of a span.
fn within(rows: &RecordBatch, span: Span) -> RecordBatch {
    let times = rows.column_by_name("ts").and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    let Some(times) = times else { return rows.clone() };
    let first = times.values().partition_point(|ts| *ts < span.from);
    let end = times.values().partition_point(|ts| *ts <= span.to);
    rows.slice(first, end.saturating_sub(first))
}

/// The event of this id, as a replay gives it: of several the one that proved itself, else the first. None: the tenant's part of the lake has none.
pub async fn find_event(
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
            let content = Content::find(store, &name).await?;
            let mut rows = Rows::open(content, &schema, Span::ALL).await?;
            while let Some(batch) = rows.next().await? {
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
        let mut of_id: Vec<Arc<SecurityEvent>> = events.into_iter().filter(|event| event.event_id == event_id).collect();
        of_id.sort_by_key(|event| !event.verified);
        if let Some(event) = of_id.into_iter().next() {
            return Ok(Some(Arc::unwrap_or_clone(event)));
        }
    }
    Ok(None)
}
