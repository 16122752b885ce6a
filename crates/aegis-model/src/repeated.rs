//! A text that most rows of a statement have alike. Promises that what it gives is what was asked for.

use std::sync::Arc;

/// Made once for as long as it stays the same: those that follow one another share it, where each would be a copy that another thread takes apart.
#[derive(Debug, Default)]
pub struct Repeated(Arc<str>);

impl Repeated {
    /// The text, shared with those before it that were the same.
    #[must_use]
    pub fn of(&mut self, text: &str) -> Arc<str> {
        if *self.0 != *text {
            self.0 = Arc::from(text);
        }
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_itself_is_made_once_and_what_does_not_is_what_it_is() {
        let mut repeated = Repeated::default();
        let all: Vec<Arc<str>> = ["", "a", "a", "ab", "a"].into_iter().map(|text| repeated.of(text)).collect();
        assert_eq!(all.iter().map(|text| &**text).collect::<Vec<_>>(), ["", "a", "a", "ab", "a"]);
        assert!(Arc::ptr_eq(&all[1], &all[2]) && !Arc::ptr_eq(&all[2], &all[4]));
    }
}
