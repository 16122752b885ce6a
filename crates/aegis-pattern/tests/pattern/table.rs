//! Rows for tests, and conditions over them: which letters hold at a row, its value, and its time.

use aegis_pattern::{
    Answer, Conditions, Finder, Found, Limits, Mapping, MatchError, Matcher, Navigation, Program, Rows, Scope, Skip, Target,
    Variable,
};

use crate::parse;

/// A row: the variables whose letter it has may be mapped to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) letters: String,
    pub(crate) value: i64,
    pub(crate) ts: i64,
}

/// What a variable's condition asks beyond the letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Letter,
    /// `value > PREV(value)`, or there is none.
    AbovePrevious,
    /// `NEXT(value) > value`.
    BelowNext,
    /// `value >= FIRST(value)`, over all rows of the match.
    NotBelowFirst,
    /// `value >= LAST(a.value)`, or no row is mapped to `a`; of `a` itself, `LAST(a.value, 1)`.
    NotBelowLastA,
    /// `COUNT(*)` is odd.
    OddCount,
    /// `MATCH_NUMBER()` is odd.
    OddMatch,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Letter,
        Self::AbovePrevious,
        Self::BelowNext,
        Self::NotBelowFirst,
        Self::NotBelowLastA,
        Self::OddCount,
        Self::OddMatch,
    ];

    pub(crate) fn depends_on_mapping(self) -> bool {
        !matches!(self, Self::Letter | Self::AbovePrevious | Self::BelowNext)
    }
}

/// The rows known of a partition, and the DEFINE clause over them.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
    pub(crate) known: Rows,
    /// Of the variables a, b, c.
    pub(crate) kinds: [Kind; 3],
    /// The letter of each variable of the program.
    letters: Vec<char>,
    a: Option<Variable>,
    /// Longest time from the first to the last row of a match.
    pub(crate) span: Option<i64>,
    /// Rows before this one are gone.
    pub(crate) kept_from: usize,
}

impl Table {
    pub(crate) fn new(program: &Program, rows: Vec<Row>) -> Self {
        let letters = program.variables().iter().map(|name| name.chars().next().unwrap()).collect();
        let known = Rows::complete(rows.len());
        Self { rows, known, kinds: [Kind::Letter; 3], letters, a: program.variable("a"), span: None, kept_from: 0 }
    }

    pub(crate) fn kind(&self, letter: char) -> Kind {
        self.kinds["abc".find(letter).unwrap()]
    }

    pub(crate) fn depends_on_mapping(&self, variable: Variable) -> bool {
        self.kind(self.letters[variable.index()]).depends_on_mapping()
    }

    fn value(&self, row: usize) -> i64 {
        assert!(row < self.known.end, "row {row} is not known yet");
        assert!(row >= self.kept_from, "row {row} was dropped");
        self.rows[row].value
    }

    /// Null where there is no row.
    fn value_at(&self, so_far: &Mapping, navigation: Navigation<'_>) -> Option<i64> {
        match navigation.locate(so_far.whole(), self.known) {
            Target::Row(row) => Some(self.value(row)),
            Target::Absent => None,
            Target::NotYet => panic!("only NEXT waits"),
        }
    }
}

impl Conditions for Table {
    type Error = String;

    fn holds(&mut self, variable: Variable, row: usize, so_far: &Mapping) -> Result<Answer, String> {
        let letter = self.letters[variable.index()];
        let value = self.value(row);
        assert_eq!((so_far.end(), so_far.classifier(row)), (row + 1, Some(variable)));
        let condition = match self.kind(letter) {
            Kind::Letter => true,
            Kind::AbovePrevious => {
                // A physical row: the test keeps one more than the finder needs.
                row.checked_sub(1).is_none_or(|previous| value > self.rows[previous].value)
            }
            Kind::BelowNext => match Navigation::last(Scope::All).next(1).locate(so_far.whole(), self.known) {
                Target::Row(next) => self.value(next) > value,
                Target::Absent => false,
                Target::NotYet => return Ok(Answer::NeedsMore),
            },
            Kind::NotBelowFirst => self.value_at(so_far, Navigation::first(Scope::All)).is_some_and(|first| value >= first),
            Kind::NotBelowLastA => {
                let nth = usize::from(letter == 'a');
                let last = self.a.and_then(|a| self.value_at(so_far, Navigation::last(Scope::One(a)).nth(nth)));
                last.is_none_or(|last| value >= last)
            }
            Kind::OddCount => so_far.whole().count(Scope::All) % 2 == 1,
            Kind::OddMatch => so_far.match_number() % 2 == 1,
        };
        Ok(Answer::from(condition && self.rows[row].letters.contains(letter)))
    }

    fn in_reach(&mut self, start: usize, row: usize) -> bool {
        let Some(span) = self.span else { return true };
        // Of a row that is not there yet it is known that it is no earlier than the last one.
        let seen = row.min(self.known.end - 1);
        self.rows[seen].ts - self.rows[start].ts <= span
    }
}

/// Rows from words: `ab . a` is a row that may be a or b, one that is neither, one that is a. A row's value and time are its number.
pub(crate) fn rows(words: &str) -> Vec<Row> {
    let row = |(index, word): (usize, &str)| Row { letters: word.to_owned(), value: index as i64, ts: index as i64 };
    words.split_whitespace().enumerate().map(row).collect()
}

/// A match as text: the start row, and the classifier of each row. `2:` is an empty match at row 2.
pub(crate) fn text(program: &Program, found: &Mapping) -> String {
    let classifiers: String = found.iter().map(|(_, variable)| program.variables()[variable.index()].as_str()).collect();
    format!("{}:{classifiers}", found.start())
}

pub(crate) fn compile(pattern: &str) -> Program {
    Program::compile(&parse::pattern(pattern)).unwrap()
}

/// Every match of the pattern over rows of letters.
pub(crate) fn matches(pattern: &str, words: &str) -> Vec<String> {
    matches_skipping(pattern, words, |_| Skip::PastLastRow).unwrap()
}

pub(crate) fn matches_skipping(
    pattern: &str,
    words: &str,
    skip: impl Fn(&Program) -> Skip,
) -> Result<Vec<String>, MatchError<String>> {
    let program = compile(pattern);
    let mut table = Table::new(&program, rows(words));
    let matcher = Matcher::new(program.clone(), skip(&program), Limits::default(), |_| false);
    let mut finder = Finder::default();
    let mut found = Vec::new();
    loop {
        let known = table.known;
        match finder.find(&matcher, known, &mut table)? {
            Found::Match(mapping) => {
                found.push(text(&program, &mapping));
                assert_eq!(mapping.match_number(), found.len() as u64);
            }
            Found::Done => return Ok(found),
            other => panic!("a complete partition is decided, not {other:?}"),
        }
    }
}
