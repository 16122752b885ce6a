//! State of sliding windows that goes on from tick to tick: rows in the order of time, and for each frame what it holds now.
//! Promises that a frame holds exactly the rows between its two distances before the time that is asked for, whatever was asked before.
//! Rows can be taken back from the end, for an event that comes late, and are dropped at the front when their time is over.

mod sorted;

use std::collections::VecDeque;
use std::sync::Arc;

use aegis_model::EventId;
use smallvec::SmallVec;

use sorted::Sorted;

/// A value that compares as what it stands for does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    /// There is one, and nobody asks which; in a list, null.
    Bare,
    /// A text as it is: most are compared byte by byte in any case.
    Text(Arc<str>),
    /// Anything else as bytes.
    Bytes(Arc<[u8]>),
    /// An event's id, of which evidence is made: without a text, and a place of its own, for each row of each rule.
    Id(EventId),
}

/// How long an id is as text.
const ID_LENGTH: usize = 36;

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Bare => 0,
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Id(_) => ID_LENGTH,
        }
    }
}

/// Values of a frame that are listed at most; of more, so many of the first and of the last. Evidence has no more.
const MOST_LISTED: usize = 4096;
const ENDS_LISTED: usize = 64;

/// The rows from `start` to `end` microseconds before another, both included: rows of the same time are all in it, or all out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Which of a row's values it is about; none: the row itself.
    pub(crate) argument: Option<usize>,
    /// Whether the values are asked for in their order, or how many different ones there are.
    pub(crate) sorted: bool,
}

/// One for each argument of a row's functions, mostly one; none where the row does not count for it.
pub(crate) type Values = SmallVec<[Option<Value>; 1]>;

#[derive(Debug)]
struct Row {
    ts: i64,
    /// How many events of that time are before its own.
    place: u32,
    values: Values,
}

/// What a frame holds: rows `from..to` of those that are there, and how many of them have a value.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    from: u32,
    to: u32,
    count: u32,
}

impl Held {
    fn add(&mut self, frame: &Frame, row: &Row, sorted: Option<&mut Sorted>) {
        let Some(value) = frame.argument.and_then(|argument| row.values[argument].as_ref()) else { return };
        self.count += 1;
        if let Some(sorted) = sorted {
            sorted.add(value);
        }
    }

    fn remove(&mut self, frame: &Frame, row: &Row, sorted: Option<&mut Sorted>) {
        let Some(value) = frame.argument.and_then(|argument| row.values[argument].as_ref()) else { return };
        self.count -= 1;
        if let Some(sorted) = sorted {
            sorted.remove(value);
        }
    }
}

/// Each frame with what it holds, and with its values in their order where those are asked for.
fn each<'a>(
    frames: &'a [Frame],
    held: &'a mut [Held],
    sorted: &'a mut [Sorted],
) -> impl Iterator<Item = (&'a Frame, &'a mut Held, Option<&'a mut Sorted>)> {
    let mut sorted = sorted.iter_mut();
    frames.iter().zip(held).map(move |(frame, held)| (frame, held, if frame.sorted { sorted.next() } else { None }))
}

/// How many rows there are. For more than are counted so there is no room in any memory.
fn length(rows: &VecDeque<Row>) -> u32 {
    u32::try_from(rows.len()).unwrap_or(u32::MAX)
}

/// The rows of one partition and its frames. There are very many, each of a few rows: so it is two lines of memory, and the rows.
#[derive(Debug)]
pub(crate) struct Partition {
    frames: Arc<[Frame]>,
    held: SmallVec<[Held; 2]>,
    /// Of each frame whose values are sorted, in the order of frames.
    sorted: SmallVec<[Sorted; 1]>,
    rows: VecDeque<Row>,
    /// The time of the first row, while there is one: whether it goes is asked of very many that are somewhere else.
    oldest: i64,
}

impl Partition {
    pub(crate) fn new(frames: Arc<[Frame]>) -> Self {
        let held = frames.iter().map(|_| Held::default()).collect();
        let sorted = frames.iter().filter(|frame| frame.sorted).map(|_| Sorted::default()).collect();
        Self { frames, held, sorted, rows: VecDeque::new(), oldest: i64::MIN }
    }

    /// Adds a row at the end: it is not older than the last one.
    pub(crate) fn push(&mut self, ts: i64, place: u32, values: Values) {
        debug_assert!(
            self.rows.back().is_none_or(|last| (last.ts, last.place) < (ts, place)),
            "rows come in the order of events"
        );
        if self.rows.is_empty() {
            self.oldest = ts;
        }
        if self.rows.len() == self.rows.capacity() {
            // Of many partitions it stays the only one, or one of a few: by half of what there is, and not by all of it.
            self.rows.reserve_exact((self.rows.len() / 2).max(1));
        }
        self.rows.push_back(Row { ts, place, values });
    }

    /// Moves all frames to where they are for a row of the time `ts`.
    pub(crate) fn seek(&mut self, ts: i64) {
        let Self { frames, held, sorted, rows, .. } = self;
        let end = length(rows);
        let row = |place: u32| &rows[place as usize];
        for (frame, held, mut sorted) in each(frames, held, sorted) {
            let (oldest, newest) = (ts.saturating_sub(frame.start), ts.saturating_sub(frame.end));
            while held.to < end && row(held.to).ts <= newest {
                held.add(frame, row(held.to), sorted.as_deref_mut());
                held.to += 1;
            }
            while held.from > 0 && row(held.from - 1).ts >= oldest {
                held.from -= 1;
                held.add(frame, row(held.from), sorted.as_deref_mut());
            }
            while held.to > held.from && row(held.to - 1).ts > newest {
                held.to -= 1;
                held.remove(frame, row(held.to), sorted.as_deref_mut());
            }
            while held.from < held.to && row(held.from).ts < oldest {
                held.remove(frame, row(held.from), sorted.as_deref_mut());
                held.from += 1;
            }
        }
    }

    /// Takes back the rows of `ts` and later.
    pub(crate) fn take_back(&mut self, ts: i64) {
        while self.rows.back().is_some_and(|row| row.ts >= ts) {
            let Some(row) = self.rows.pop_back() else { return };
            let last = length(&self.rows);
            for (frame, held, sorted) in each(&self.frames, &mut self.held, &mut self.sorted) {
                if held.to > last {
                    if held.from <= last {
                        held.remove(frame, &row, sorted);
                    }
                    held.to = last;
                    held.from = held.from.min(last);
                }
            }
        }
    }

    /// Drops the rows before `ts`, and those of the first `taken` events of that time.
    pub(crate) fn drop_before(&mut self, ts: i64, taken: u32) {
        if self.rows.is_empty() || self.oldest > ts {
            return;
        }
        while self.rows.front().is_some_and(|row| (row.ts, row.place) < (ts, taken)) {
            let Some(row) = self.rows.pop_front() else { return };
            for (frame, held, sorted) in each(&self.frames, &mut self.held, &mut self.sorted) {
                if held.from > 0 {
                    // What it holds has moved up.
                    held.from -= 1;
                    held.to -= 1;
                } else if held.to > 0 {
                    held.remove(frame, &row, sorted);
                    held.to -= 1;
                }
            }
        }
        if let Some(first) = self.rows.front() {
            self.oldest = first.ts;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Something of its rows, which lie elsewhere. Nothing follows from it.
    pub(crate) fn glance(&self) -> bool {
        self.rows.back().is_some_and(|last| last.ts == self.oldest)
    }

    /// How many rows of a frame count.
    pub(crate) fn count(&self, frame: usize) -> i64 {
        let held = self.held[frame];
        let count = if self.frames[frame].argument.is_some() { held.count } else { held.to - held.from };
        count.into()
    }

    /// The values of a frame in their order, if it has them.
    fn sorted(&self, frame: usize) -> Option<&Sorted> {
        let place = self.frames[..frame].iter().filter(|before| before.sorted).count();
        self.sorted.get(place).filter(|_| self.frames[frame].sorted)
    }

    pub(crate) fn distinct(&self, frame: usize) -> i64 {
        (self.sorted(frame).map_or(0, Sorted::len) as u64).cast_signed()
    }

    pub(crate) fn least(&self, frame: usize) -> Option<&Value> {
        self.sorted(frame)?.first()
    }

    pub(crate) fn greatest(&self, frame: usize) -> Option<&Value> {
        self.sorted(frame)?.last()
    }

    /// The values of a frame in the order of its rows; of more than `MOST_LISTED`, or more than so many bytes, some of the first and the last.
    pub(crate) fn values(&self, frame: usize, most_bytes: usize) -> Vec<&Value> {
        let Held { from, to, count } = self.held[frame];
        if count == 0 {
            return Vec::new();
        }
        let there_are = || {
            let rows = self.rows.range(from as usize..to as usize);
            rows.filter_map(|row| self.frames[frame].argument.and_then(|argument| row.values[argument].as_ref()))
        };
        if count as usize <= MOST_LISTED && there_are().map(Value::len).sum::<usize>() <= most_bytes {
            return there_are().collect();
        }
        // One of each end, however long.
        let fits = |bytes: &mut usize, value: &Value| {
            let is_first = *bytes == 0;
            *bytes += value.len();
            is_first || *bytes <= most_bytes / 2
        };
        let (mut first_bytes, mut last_bytes) = (0, 0);
        let mut some: Vec<&Value> = there_are().take(ENDS_LISTED).take_while(|value| fits(&mut first_bytes, value)).collect();
        let mut last: Vec<&Value> =
            there_are().rev().take(ENDS_LISTED).take_while(|value| fits(&mut last_bytes, value)).collect();
        last.reverse();
        some.extend(last);
        some
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What may be done with a partition, in any order.
    #[derive(Clone, Debug)]
    enum Step {
        Push { after: i64, value: Option<u8> },
        Seek { back: i64 },
        TakeBack { back: i64 },
        Drop { back: i64, taken: u32 },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4i64, prop::option::of(0..4u8)).prop_map(|(after, value)| Step::Push { after, value }),
            4 => (0..12i64).prop_map(|back| Step::Seek { back }),
            1 => (0..12i64).prop_map(|back| Step::TakeBack { back }),
            1 => (4..20i64, 0..3u32).prop_map(|(back, taken)| Step::Drop { back, taken }),
        ]
    }

    fn first_of(value: &Value) -> u8 {
        match value {
            Value::Bytes(bytes) => bytes[0],
            other => panic!("it was not added: {other:?}"),
        }
    }

    const FRAMES: [Frame; 4] = [
        Frame { start: 5, end: 0, argument: None, sorted: false },
        Frame { start: 5, end: 1, argument: Some(0), sorted: true },
        Frame { start: 8, end: 3, argument: Some(0), sorted: false },
        Frame { start: 0, end: 0, argument: Some(0), sorted: true },
    ];

    proptest! {
        /// L-INCREMENTAL for the frames alone: a list that is searched anew each time has the same in every frame.
        #[test]
        fn l_incremental_a_frame_holds_what_a_search_finds(steps in prop::collection::vec(any_step(), 1..80)) {
            let mut partition = Partition::new(Arc::from(FRAMES));
            let mut list: Vec<(i64, Option<u8>, u32)> = Vec::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Push { after, value } => {
                        now = list.last().map_or(now, |last| last.0) + after;
                        let place = list.last().filter(|last| last.0 == now).map_or(0, |last| last.2 + 1);
                        list.push((now, value, place));
                        partition.push(now, place, Values::from_iter([value.map(|value| Value::Bytes(Arc::from([value])))]));
                    }
                    Step::TakeBack { back } => {
                        list.retain(|row| row.0 < now - back);
                        partition.take_back(now - back);
                    }
                    Step::Drop { back, taken } => {
                        list.retain(|row| (row.0, row.2) >= (now - back, taken));
                        partition.drop_before(now - back, taken);
                    }
                    Step::Seek { back } => {
                        let ts = now - back;
                        partition.seek(ts);
                        for (index, frame) in FRAMES.iter().enumerate() {
                            let within = |row: &&(i64, Option<u8>, u32)| ts - frame.start <= row.0 && row.0 <= ts - frame.end;
                            let rows: Vec<_> = list.iter().filter(within).collect();
                            let mut values: Vec<u8> = rows.iter().filter_map(|row| row.1).collect();
                            if frame.argument.is_none() {
                                prop_assert_eq!(partition.count(index), rows.len() as i64);
                                continue;
                            }
                            prop_assert_eq!(partition.count(index), values.len() as i64);
                            prop_assert_eq!(partition.values(index, 1 << 20).into_iter().map(first_of).collect::<Vec<_>>(), values.clone());
                            if frame.sorted {
                                values.sort_unstable();
                                prop_assert_eq!(partition.least(index).map(first_of), values.first().copied());
                                prop_assert_eq!(partition.greatest(index).map(first_of), values.last().copied());
                                values.dedup();
                                prop_assert_eq!(partition.distinct(index), values.len() as i64);
                            }
                        }
                    }
                }
            }
        }
    }

    /// There are as many as rules have keys, of all tenants together.
    #[test]
    fn a_partition_is_little_memory() {
        let (partition, row) = (size_of::<Partition>(), size_of::<Row>());
        assert!(partition <= 144 && row <= 56, "a partition has {partition} bytes, a row {row}");
    }

    #[test]
    fn of_a_long_list_the_ends_are_listed() {
        let mut partition = Partition::new(Arc::from([Frame { start: 100_000, end: 0, argument: Some(0), sorted: false }]));
        let value = |n: i64| Value::Bytes(Arc::from(n.to_be_bytes()));
        let listed = |partition: &Partition, bytes| {
            let number = |value: &Value| match value {
                Value::Bytes(bytes) => i64::from_be_bytes(bytes[..].try_into().unwrap()),
                other => panic!("it was not added: {other:?}"),
            };
            partition.values(0, bytes).into_iter().map(number).collect::<Vec<_>>()
        };
        for n in 0..5_000 {
            partition.push(n, 0, Values::from_iter([Some(value(n))]));
            if n == 4_095 {
                partition.seek(n);
                assert_eq!(listed(&partition, 1 << 20), (0..4_096).collect::<Vec<_>>());
                assert_eq!(listed(&partition, 4_096 * 8 - 1), (0..64).chain(4_032..4_096).collect::<Vec<_>>());
            }
        }
        partition.seek(4_999);
        assert_eq!(listed(&partition, 1 << 20), (0..64).chain(4_936..5_000).collect::<Vec<_>>());
        assert_eq!(listed(&partition, 32), [0, 1, 4_998, 4_999], "as many of each end as there is room for");
        assert_eq!(listed(&partition, 0), [0, 4_999], "and one of each in any case");
    }
}
