//! A small parser of the PATTERN clause, so that tests can be read. Variables are single letters; it panics on anything else.

use aegis_pattern::{Pattern, Quantifier};

pub(crate) fn pattern(text: &str) -> Pattern {
    let mut parser = Parser { rest: text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<_>>().into_iter().peekable() };
    let pattern = parser.alternation();
    assert!(parser.rest.next().is_none(), "cannot read {text}");
    pattern
}

struct Parser {
    rest: std::iter::Peekable<std::vec::IntoIter<char>>,
}

impl Parser {
    fn take(&mut self, wanted: char) -> bool {
        self.rest.next_if_eq(&wanted).is_some()
    }

    fn alternation(&mut self) -> Pattern {
        let mut parts = vec![self.concatenation()];
        while self.take('|') {
            parts.push(self.concatenation());
        }
        if parts.len() == 1 { parts.remove(0) } else { Pattern::Alternate(parts) }
    }

    fn concatenation(&mut self) -> Pattern {
        let mut parts = Vec::new();
        while self.rest.peek().is_some_and(|c| !matches!(c, '|' | ')')) {
            parts.push(self.factor());
        }
        match parts.len() {
            0 => Pattern::Empty,
            1 => parts.remove(0),
            _ => Pattern::Concat(parts),
        }
    }

    fn factor(&mut self) -> Pattern {
        let part = match self.rest.next() {
            Some('^') => Pattern::Start,
            Some('$') => Pattern::End,
            Some('(') => {
                let inner = self.alternation();
                assert!(self.take(')'), "a parenthesis is not closed");
                inner
            }
            Some(letter) if letter.is_ascii_alphabetic() => Pattern::variable(letter),
            other => panic!("cannot read {other:?}"),
        };
        match self.quantifier() {
            Some(quantifier) => part.times(if self.take('?') { quantifier.reluctant() } else { quantifier }),
            None => part,
        }
    }

    fn quantifier(&mut self) -> Option<Quantifier> {
        match self.rest.next_if(|c| matches!(c, '*' | '+' | '?' | '{'))? {
            '*' => Some(Quantifier::ZERO_OR_MORE),
            '+' => Some(Quantifier::ONE_OR_MORE),
            '?' => Some(Quantifier::OPTIONAL),
            _ => {
                let min = self.number();
                let quantifier = match (min, self.take(',')) {
                    (Some(n), false) => Quantifier::exactly(n),
                    (min, _) => Quantifier { min: min.unwrap_or(0), max: self.number(), greedy: true },
                };
                assert!(self.take('}'), "a brace is not closed");
                Some(quantifier)
            }
        }
    }

    fn number(&mut self) -> Option<u32> {
        let mut digits = String::new();
        while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        digits.parse().ok()
    }
}

#[test]
fn what_is_written_is_read_back() {
    for text in ["a b* (c | a+?){2,3}? $", "^ (a{,4} | ())* (b c){2,}?", "(^)? ((a | b) | c){3}", "((a*)+)? b??"] {
        assert_eq!(pattern(text).to_string(), text);
    }
}
