//! The text of a `PATTERN` clause, read as the standard has it.

use aegis_pattern::{MAX_DEPTH, Pattern, Quantifier};
use datafusion::sql::sqlparser::tokenizer::Location;

use crate::refusal::Refusal;
use crate::tokens::location_in;

/// The pattern of a text that begins at `origin`. `normalize` says what name an identifier is, and whether it is quoted.
///
/// # Errors
/// What is no pattern, and what is not supported.
pub(crate) fn read(text: &str, origin: Location, normalize: &dyn Fn(&str, bool) -> String) -> Result<Pattern, Refusal> {
    let characters: Vec<char> = text.chars().collect();
    let mut reader = Reader { text, characters: &characters, at: 0, depth: 0, origin, normalize };
    reader.skip_space();
    let pattern = if reader.peek().is_none() { Pattern::Empty } else { reader.alternation()? };
    match reader.peek() {
        None => Ok(pattern),
        Some(other) => Err(reader.refuse(format!("`{other}` is not expected in PATTERN"))),
    }
}

struct Reader<'a> {
    text: &'a str,
    characters: &'a [char],
    /// The next character. White space before it has been skipped.
    at: usize,
    depth: usize,
    origin: Location,
    normalize: &'a dyn Fn(&str, bool) -> String,
}

impl Reader<'_> {
    fn alternation(&mut self) -> Result<Pattern, Refusal> {
        let mut parts = vec![self.concatenation()?];
        while self.take('|') {
            parts.push(self.concatenation()?);
        }
        Ok(single(parts, Pattern::Alternate))
    }

    fn concatenation(&mut self) -> Result<Pattern, Refusal> {
        let mut parts = Vec::new();
        while self.peek().is_some_and(|next| !matches!(next, '|' | ')')) {
            parts.push(self.factor()?);
        }
        if parts.is_empty() {
            return Err(self.refuse("PATTERN lacks a variable here").hint("write () for no row"));
        }
        Ok(single(parts, Pattern::Concat))
    }

    fn factor(&mut self) -> Result<Pattern, Refusal> {
        let begin = self.at;
        let part = self.primary()?;
        let anchor = matches!(self.characters.get(begin), Some('^' | '$'));
        let quantified_at = self.at;
        let Some(quantifier) = self.quantifier()? else { return Ok(part) };
        if anchor {
            self.at = quantified_at;
            return Err(self.refuse("an anchor cannot be repeated").hint("put it in parentheses"));
        }
        let quantifier = if self.take('?') { quantifier.reluctant() } else { quantifier };
        if matches!(self.peek(), Some('*' | '+' | '?')) {
            return Err(self.refuse("a quantifier cannot be repeated").hint("put what is repeated in parentheses"));
        }
        Ok(part.times(quantifier))
    }

    fn primary(&mut self) -> Result<Pattern, Refusal> {
        match self.peek() {
            Some('^') => self.one(Pattern::Start),
            Some('$') => self.one(Pattern::End),
            Some('(') => self.group(),
            Some('{') => {
                let exclusion =
                    self.characters.get(self.at + 1..).is_some_and(|rest| rest.iter().find(|c| !c.is_whitespace()) == Some(&'-'));
                if exclusion {
                    let refusal = Refusal::unsupported("exclusion ({- -})").at(self.place());
                    return Err(refusal.hint("with one row per match it excludes nothing: leave the braces off"));
                }
                Err(self.refuse("a quantifier has nothing to repeat"))
            }
            Some('*' | '+' | '?') => Err(self.refuse("a quantifier has nothing to repeat")),
            Some('"') => self.quoted(),
            Some(letter) if begins_name(letter) => self.name(),
            Some(other) => Err(self.refuse(format!("`{other}` is not expected in PATTERN"))),
            None => Err(self.refuse("PATTERN ends too early")),
        }
    }

    fn one(&mut self, pattern: Pattern) -> Result<Pattern, Refusal> {
        self.advance();
        Ok(pattern)
    }

    fn group(&mut self) -> Result<Pattern, Refusal> {
        self.advance();
        self.depth += 1;
        // What is nested deeper is refused when the pattern is compiled; this guards the way there.
        if self.depth > MAX_DEPTH {
            return Err(self.refuse(format!("PATTERN is nested deeper than {MAX_DEPTH} levels")));
        }
        let inner = if self.peek() == Some(')') { Pattern::Empty } else { self.alternation()? };
        if !self.take(')') {
            return Err(self.refuse("a parenthesis of PATTERN is not closed"));
        }
        self.depth -= 1;
        Ok(inner)
    }

    fn name(&mut self) -> Result<Pattern, Refusal> {
        let begin = self.at;
        let place = self.place();
        while self.characters.get(self.at).is_some_and(|next| begins_name(*next) || next.is_numeric()) {
            self.at += 1;
        }
        let name: String = self.characters[begin..self.at].iter().collect();
        self.skip_space();
        if name.eq_ignore_ascii_case("PERMUTE") && self.peek() == Some('(') {
            return Err(Refusal::unsupported("PERMUTE").at(place).hint("write the orders as an alternation: a b | b a"));
        }
        Ok(Pattern::Variable((self.normalize)(&name, false)))
    }

    fn quoted(&mut self) -> Result<Pattern, Refusal> {
        let mut name = String::new();
        loop {
            self.at += 1;
            match self.characters.get(self.at) {
                Some('"') if self.characters.get(self.at + 1) == Some(&'"') => {
                    name.push('"');
                    self.at += 1;
                }
                Some('"') => break,
                Some(other) => name.push(*other),
                None => return Err(self.refuse("a quoted name of PATTERN is not closed")),
            }
        }
        self.advance();
        Ok(Pattern::Variable((self.normalize)(&name, true)))
    }

    fn quantifier(&mut self) -> Result<Option<Quantifier>, Refusal> {
        let quantifier = match self.peek() {
            Some('*') => Quantifier::ZERO_OR_MORE,
            Some('+') => Quantifier::ONE_OR_MORE,
            Some('?') => Quantifier::OPTIONAL,
            Some('{') => return self.counted(),
            _ => return Ok(None),
        };
        self.advance();
        Ok(Some(quantifier))
    }

    /// `{n}`, `{n,}`, `{n,m}`, `{,m}`, and `{,}`, which is `*`; none if it is the beginning of an exclusion.
    fn counted(&mut self) -> Result<Option<Quantifier>, Refusal> {
        let begin = self.at;
        self.advance();
        if self.peek() == Some('-') {
            self.at = begin;
            return Ok(None);
        }
        let min = self.number()?;
        let quantifier = match (min, self.take(',')) {
            (Some(count), false) => Quantifier::exactly(count),
            (min, true) => Quantifier { min: min.unwrap_or(0), max: self.number()?, greedy: true },
            (None, false) => return Err(self.refuse("a quantifier needs a count: {n}, {n,}, {,m} or {n,m}")),
        };
        if !self.take('}') {
            return Err(self.refuse("a brace of PATTERN is not closed"));
        }
        Ok(Some(quantifier))
    }

    fn number(&mut self) -> Result<Option<u32>, Refusal> {
        let begin = self.at;
        while self.characters.get(self.at).is_some_and(char::is_ascii_digit) {
            self.at += 1;
        }
        let digits: String = self.characters[begin..self.at].iter().collect();
        self.skip_space();
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| self.refuse(format!("the count {digits} is too large")))
    }

    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        if there {
            self.advance();
        }
        there
    }

    fn advance(&mut self) {
        self.at += 1;
        self.skip_space();
    }

    /// White space and comments.
    fn skip_space(&mut self) {
        loop {
            let rest = self.characters.get(self.at..).unwrap_or_default();
            let length = match rest {
                [first, ..] if first.is_whitespace() => 1,
                ['-', '-', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
                ['/', '*', ..] => rest.windows(2).skip(2).position(|pair| pair == ['*', '/']).map_or(rest.len(), |end| end + 4),
                _ => return,
            };
            self.at += length;
        }
    }

    fn place(&self) -> Location {
        location_in(self.text, self.at, self.origin)
    }

    fn refuse(&self, message: impl Into<String>) -> Refusal {
        Refusal::invalid(message).at(self.place())
    }
}

fn begins_name(character: char) -> bool {
    character.is_alphabetic() || character == '_'
}

fn single(mut parts: Vec<Pattern>, several: fn(Vec<Pattern>) -> Pattern) -> Pattern {
    if parts.len() > 1 {
        return several(parts);
    }
    parts.pop().unwrap_or(Pattern::Empty)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern, Refusal> {
        let name = |name: &str, quoted: bool| if quoted { name.to_owned() } else { name.to_lowercase() };
        read(text, Location { line: 1, column: 1 }, &name)
    }

    #[test]
    fn what_the_standard_has_is_read_and_means_the_same_when_written_again() {
        for (text, means) in [
            ("a", "a"),
            ("", "()"),
            (" A b\n-- a comment ) \n c/* | */d ", "a b c d"),
            ("a*? b+? c??", "a*? b+? c??"),
            ("a{2}b{2,}c{,3}d{2,3}?", "a{2} b{2,} c{,3} d{2,3}?"),
            ("a{,}b{ , }?", "a* b*?"),
            ("^(a|b|())$", "^ (a | b | ()) $"),
            ("((a b) c)*", "((a b) c)*"),
            ("\"Two words\"+ ( x )", "\"Two words\"+ x"),
            ("(^)? a$", "(^)? a $"),
            ("permute permuted", "permute permuted"),
        ] {
            let read = pattern(text).unwrap();
            assert_eq!(read.to_string(), means);
            assert_eq!(pattern(means).unwrap(), read);
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_where_it_stands() {
        for (text, message) in [
            ("a |", "PATTERN lacks a variable here at Line: 1, Column: 4 (write () for no row)"),
            ("a || b", "PATTERN lacks a variable here at Line: 1, Column: 4 (write () for no row)"),
            ("a **", "a quantifier cannot be repeated at Line: 1, Column: 4 (put what is repeated in parentheses)"),
            ("a\n ^*", "an anchor cannot be repeated at Line: 2, Column: 3 (put it in parentheses)"),
            ("* a", "a quantifier has nothing to repeat at Line: 1, Column: 1"),
            ("(a b", "a parenthesis of PATTERN is not closed at Line: 1, Column: 5"),
            ("a{}", "a quantifier needs a count: {n}, {n,}, {,m} or {n,m} at Line: 1, Column: 3"),
            ("a{99999999999}", "the count 99999999999 is too large at Line: 1, Column: 14"),
            ("a - b", "`-` is not expected in PATTERN at Line: 1, Column: 3"),
            (
                "a {- b c -}",
                "exclusion ({- -}) is not supported in MATCH_RECOGNIZE at Line: 1, Column: 3 \
                 (with one row per match it excludes nothing: leave the braces off)",
            ),
            (
                "x Permute(a, b)",
                "PERMUTE is not supported in MATCH_RECOGNIZE at Line: 1, Column: 3 (write the orders as an alternation: a b | b a)",
            ),
        ] {
            assert_eq!(pattern(text).unwrap_err().to_string(), message, "{text}");
        }
    }
}
