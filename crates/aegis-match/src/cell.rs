//! What conditions and measures read of a mapping: navigation, classifiers, counts, the match number.

use aegis_pattern::{Mapping, Navigation, Rows, Target};

use crate::recognizer::{ReadSlot, Recognizer, Scope};

/// What a slot that is no aggregate reads.
pub(crate) enum Cell<'a> {
    /// A kept column at a row.
    Row(usize, usize),
    Text(&'a str),
    Number(i64),
    /// Null.
    Absent,
    /// A row to come decides.
    NotYet,
}

/// What a slot reads of a mapping, all of it seen. Rows before `first` are none of the partition's.
pub(crate) fn read<'a>(slot: &ReadSlot, recognizer: &'a Recognizer, mapping: &Mapping, rows: Rows, first: usize) -> Cell<'a> {
    let locate = |scope: Scope, from_first: bool, nth: usize, step: i64| {
        let navigation = Navigation { scope: scope.in_pattern(), from_first, nth, step };
        match navigation.locate(mapping.whole(), rows) {
            Target::Row(row) if row < first => Target::Absent,
            target => target,
        }
    };
    match *slot {
        ReadSlot::Column { column, scope, from_first, nth, step } => match locate(scope, from_first, nth, step) {
            Target::Row(row) => Cell::Row(column, row),
            Target::Absent => Cell::Absent,
            Target::NotYet => Cell::NotYet,
        },
        // A row that is still to come is in no match that is known: it has no variable.
        ReadSlot::Classifier { scope, from_first, nth, step } => match locate(scope, from_first, nth, step) {
            Target::Row(row) => {
                mapping.classifier(row).map_or(Cell::Absent, |variable| Cell::Text(recognizer.variable_name(variable)))
            }
            Target::Absent | Target::NotYet => Cell::Absent,
        },
        ReadSlot::Count(scope) => Cell::Number(mapping.whole().count(scope.in_pattern()) as i64),
        ReadSlot::MatchNumber => Cell::Number(mapping.match_number() as i64),
        ReadSlot::Aggregate(_) => Cell::Absent,
    }
}
