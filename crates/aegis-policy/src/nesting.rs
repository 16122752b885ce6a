//! A bound on how deeply a policy may nest, checked on the text before Cedar sees it: Cedar's parser and typechecker recurse, and a
//! crafted policy could otherwise overflow the stack and end the process.

/// Deepest nesting of brackets.
const MAX_BRACKETS: usize = 32;
/// Most operators of one policy that can nest an expression one level deeper: `&& || + - * ! .` and `if`.
const MAX_OPERATORS: usize = 1_000;

/// Where a text first exceeds a bound, as a byte offset and a message.
pub(crate) fn find_excess(text: &str) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    let mut brackets = 0_usize;
    let mut operators = 0_usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let mut length = 1;
        match byte {
            b'"' => length = string_length(rest),
            b'/' if rest.starts_with(b"//") => length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            b'(' | b'[' | b'{' => brackets += 1,
            b')' | b']' | b'}' => brackets = brackets.saturating_sub(1),
            // Only where a policy can end: an attacker's `;` inside an expression resets nothing.
            b';' if brackets == 0 => operators = 0,
            b'&' | b'|' if rest.get(1) == Some(byte) => {
                operators += 1;
                length = 2;
            }
            b'+' | b'-' | b'*' | b'!' | b'.' => operators += 1,
            byte if is_name(*byte) => {
                length = rest.iter().position(|b| !is_name(*b)).unwrap_or(rest.len());
                operators += usize::from(&rest[..length] == b"if");
            }
            _ => {}
        }
        if brackets > MAX_BRACKETS {
            return Some((at, format!("brackets nest deeper than {MAX_BRACKETS}")));
        }
        if operators > MAX_OPERATORS {
            return Some((at, format!("the policy has more than {MAX_OPERATORS} operators")));
        }
        at += length;
    }
    None
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Length of a string literal that starts `text`, with its quotes; to the end if it is not closed.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    for (index, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_do_not_count() {
        let noise = "((([[[{{{&&||!!++".repeat(200);
        assert_eq!(find_excess(&format!("\"{noise}\\\"{noise}\" // {noise}\n")), None);
        assert!(find_excess(&noise).is_some());
    }

    #[test]
    fn the_bounds_are_exact_and_a_policy_s_own() {
        let brackets = |count: usize| format!("{}{}", "(".repeat(count), ")".repeat(count));
        assert_eq!(find_excess(&brackets(MAX_BRACKETS)), None);
        assert_eq!(find_excess(&brackets(MAX_BRACKETS + 1)).map(|(at, _)| at), Some(MAX_BRACKETS));
        let operators = " a || b".repeat(MAX_OPERATORS);
        assert_eq!(find_excess(&format!("{operators};{operators};")), None);
        assert!(find_excess(&format!("{operators} if")).is_some());
        assert!(find_excess(&format!("({operators};{operators};)")).is_some());
    }
}
