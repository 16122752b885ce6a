//! What the SQL parser does not read of `MATCH_RECOGNIZE`, put into tokens that it does read, each at its own place in the text.
//!
//! The whole pattern becomes one word, which [`crate::pattern`] reads: so it is the standard's pattern and no dialect's. `FINAL LAST(…)`
//! becomes a function of that name. `SKIP TO v` is `SKIP TO LAST v`. Clauses that are not run are refused here by name; the rest is the parser's.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Word};

use crate::refusal::Refusal;

/// The tokens, rewritten where they are those of a `MATCH_RECOGNIZE`; others are left as they are.
///
/// # Errors
/// A clause that is not supported.
pub fn prepare(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>, Refusal> {
    let mut prepared = Vec::with_capacity(tokens.len());
    let mut rest = tokens.as_slice();
    while let Some((token, after)) = rest.split_first() {
        rest = after;
        let recognizes = is_word(token, "MATCH_RECOGNIZE") && next(rest).is_some_and(|token| token.token == Token::LParen);
        if !recognizes {
            prepared.push(token.clone());
            continue;
        }
        if reads_a_subquery(&prepared) {
            let refusal = Refusal::unsupported("a subquery in parentheses as the input").at(token.span.start);
            return Err(refusal.hint("name it: WITH t AS (…) SELECT … FROM t MATCH_RECOGNIZE (…)"));
        }
        prepared.push(token.clone());
        let end = closing(rest).unwrap_or(rest.len());
        clauses(&rest[..end], &mut prepared)?;
        rest = &rest[end..];
    }
    Ok(prepared)
}

/// Whether the last table is a parenthesis, with or without a name after it.
fn reads_a_subquery(before: &[TokenWithSpan]) -> bool {
    let mut back = before.iter().rev().filter(|token| !is_space(token)).peekable();
    let closes = |token: Option<&&TokenWithSpan>| token.is_some_and(|token| token.token == Token::RParen);
    if closes(back.peek()) {
        return true;
    }
    back.next();
    if back.peek().is_some_and(|token| is_word(token, "AS")) {
        back.next();
    }
    closes(back.peek())
}

/// What stands in the parentheses of one `MATCH_RECOGNIZE`, the outer ones included.
fn clauses(tokens: &[TokenWithSpan], prepared: &mut Vec<TokenWithSpan>) -> Result<(), Refusal> {
    let mut depth = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let after = &tokens[at + 1..];
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ => {}
        }
        let opens = next(after).is_some_and(|token| token.token == Token::LParen);
        if depth == 1 && is_word(token, "PATTERN") && opens {
            let end = closing(after).unwrap_or(after.len());
            prepared.push(token.clone());
            prepared.extend(pattern(&after[..end]));
            refuse_before_define(&after[end..])?;
            at += 1 + end;
            continue;
        }
        if depth == 1 && next(after).is_some_and(|token| is_word(token, "PATTERN")) {
            for word in ["INITIAL", "SEEK"] {
                if is_word(token, word) {
                    return Err(Refusal::unsupported(format!("{word} (which belongs to windows)")).at(token.span.start));
                }
            }
        }
        if (is_word(token, "FINAL") || is_word(token, "RUNNING"))
            && let Some((merged, length)) = with_semantics(token, after)
        {
            prepared.push(merged);
            at += 1 + length;
            continue;
        }
        prepared.push(token.clone());
        if depth == 1 && is_word(token, "TO") && skips_to_a_variable(prepared, after) {
            prepared.push(TokenWithSpan::new(Token::make_word("LAST", None), token.span));
        }
        at += 1;
    }
    Ok(())
}

/// `( … )` of the pattern as `(`, one word, `)`.
fn pattern(tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    let open = tokens.iter().position(|token| token.token == Token::LParen).unwrap_or(0);
    let inner = tokens.get(open + 1..tokens.len() - 1).unwrap_or_default();
    let text: String = inner.iter().map(|token| token.token.to_string()).collect();
    let text = if text.trim().is_empty() { "()".to_owned() } else { text };
    let mut prepared = tokens[..=open].to_vec();
    prepared.push(word(&text, inner.first().unwrap_or(&tokens[open])));
    prepared.extend(tokens.last().cloned());
    prepared
}

fn refuse_before_define(after_pattern: &[TokenWithSpan]) -> Result<(), Refusal> {
    let Some(token) = next(after_pattern) else { return Ok(()) };
    if is_word(token, "SUBSET") {
        let refusal = Refusal::unsupported("SUBSET").at(token.span.start);
        return Err(refusal.hint("name the variables one by one, or leave the qualifier off for all rows of the match"));
    }
    if is_word(token, "WITHIN") {
        let refusal = Refusal::unsupported("WITHIN").at(token.span.start);
        return Err(refusal.hint("bound the span in DEFINE, such as `b AS b.ts <= FIRST(ts) + INTERVAL '5' MINUTE`"));
    }
    Ok(())
}

/// `FINAL` or `RUNNING` and the function after it as one word, and how many tokens that is after the first.
fn with_semantics(semantics: &TokenWithSpan, after: &[TokenWithSpan]) -> Option<(TokenWithSpan, usize)> {
    let place = after.iter().position(|token| !is_space(token))?;
    let Token::Word(function) = &after[place].token else { return None };
    let called = next(&after[place + 1..]).is_some_and(|token| token.token == Token::LParen);
    if !called || function.quote_style.is_some() {
        return None;
    }
    let Token::Word(prefix) = &semantics.token else { return None };
    Some((word(&format!("{} {}", prefix.value, function.value), semantics), place + 1))
}

/// Whether `SKIP TO` is followed by a variable and by no word that says which row of it.
fn skips_to_a_variable(before: &[TokenWithSpan], after: &[TokenWithSpan]) -> bool {
    let skips = before.iter().rev().filter(|token| !is_space(token)).nth(1).is_some_and(|token| is_word(token, "SKIP"));
    let said = |token: &TokenWithSpan| ["FIRST", "LAST", "NEXT"].iter().any(|word| is_word(token, word));
    skips && next(after).is_some_and(|token| matches!(token.token, Token::Word(_)) && !said(token))
}

/// How many tokens there are up to the parenthesis that closes the first one, it included.
fn closing(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen if depth <= 1 => return Some(index + 1),
            Token::RParen => depth -= 1,
            _ => {}
        }
    }
    None
}

fn word(text: &str, at: &TokenWithSpan) -> TokenWithSpan {
    TokenWithSpan::new(Token::Word(Word { value: text.to_owned(), quote_style: None, keyword: Keyword::NoKeyword }), at.span)
}

fn next(tokens: &[TokenWithSpan]) -> Option<&TokenWithSpan> {
    tokens.iter().find(|token| !is_space(token))
}

fn is_space(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::Whitespace(_))
}

fn is_word(token: &TokenWithSpan, text: &str) -> bool {
    matches!(&token.token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text))
}

/// Where a character of a text stands that begins at `origin`.
pub(crate) fn location_in(text: &str, offset: usize, origin: Location) -> Location {
    if origin.line == 0 {
        return origin;
    }
    let mut place = origin;
    for character in text.chars().take(offset) {
        if character == '\n' {
            place = Location { line: place.line + 1, column: 1 };
        } else {
            place.column += 1;
        }
    }
    place
}
