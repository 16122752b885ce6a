//! Sets of rules of any size: the shipped ones that run, and copies of them under other ids, each with other constants, so that no two are one query.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aegis_detect::RuleSet;
use aegis_model::RuleMode;
use anyhow::Context;
use serde::{Deserialize, Serialize};

/// How a set is filled, for whoever reads the figures.
pub(crate) const HOW: &str = "shipped rules that run; of those that are repeated, the nth copy has every interval of its query n seconds longer, and its window 4n";
/// They come first, so that every story is told of in the smallest set.
pub(crate) const FIRST: [&str; 10] = [
    "deny-storm",
    "read-sensitive-then-exfil",
    "confused-deputy",
    "trust-escalation",
    "runaway",
    "mass-external-send",
    "run-rotation",
    "cross-repository",
    "denial-of-wallet",
    "agent-in-two-environments",
];
/// A copy's window grows by so many times what its intervals do: frames stand on frames, no more of them than this.
const FRAMES: i64 = 4;
const INTERVAL: &str = "INTERVAL '";
/// Units of intervals, in seconds. Finer ones are left as they are.
const UNITS: [(&str, i64); 4] = [(" SECOND", 1), (" MINUTE", 60), (" HOUR", 3600), (" DAY", 86_400)];

/// The texts of some rules.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Texts {
    texts: Vec<(PathBuf, String)>,
    /// Of each rule's id the name of the shipped rule that it is, or is a copy of.
    pub(crate) names: BTreeMap<String, String>,
}

impl Texts {
    /// So many rules.
    pub(crate) fn of(count: usize) -> anyhow::Result<Self> {
        let shipped = RuleSet::shipped()?;
        let mut rules: Vec<_> = shipped.rules().filter(|rule| rule.header.mode != RuleMode::Disabled).collect();
        // Who reads the alerts of others comes after all of them.
        let place = |name: &str| FIRST.iter().position(|first| name == *first).unwrap_or(FIRST.len());
        rules.sort_by_key(|rule| (place(&rule.header.name), rule.text.contains("FROM alerts")));
        anyhow::ensure!(!rules.is_empty(), "no shipped rule runs");
        let mut all = Self { texts: Vec::new(), names: BTreeMap::new() };
        for n in 0..count {
            let (rule, copy) = (rules[n % rules.len()], (n / rules.len()) as i64);
            let header = &rule.header;
            let (id, text) = if copy == 0 {
                (header.id.clone(), rule.text.clone())
            } else {
                let text = copy_of(&rule.text, header.window_s, copy);
                (format!("{}-{copy}", header.id), text.with_context(|| format!("{} cannot be copied", header.name))?)
            };
            all.names.insert(id.clone(), header.name.clone());
            all.texts.push((PathBuf::from(format!("{id}/rule.sql")), text));
        }
        Ok(all)
    }

    /// Writes them down for a run, which then plans no rule but its own.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// The rules, checked and planned as they are anywhere else.
    pub(crate) fn load(&self) -> anyhow::Result<RuleSet> {
        Ok(RuleSet::from_texts(self.texts.iter().cloned())?)
    }
}

/// The rule with another id and name, and longer by so many seconds.
fn copy_of(text: &str, window_s: i64, copy: i64) -> Option<String> {
    let (header, query) = text.split_once("*/")?;
    let mut copied = String::new();
    for line in header.lines() {
        match line.split_once(": ") {
            Some((key @ ("id" | "name"), value)) => copied.push_str(&format!("{key}: {}-{copy}", value.trim())),
            Some(("window", _)) => copied.push_str(&format!("window: {}s", window_s + FRAMES * copy)),
            _ => copied.push_str(line),
        }
        copied.push('\n');
    }
    copied.push_str("*/");
    copied.push_str(&with_longer_intervals(query, copy)?);
    Some(copied)
}

fn with_longer_intervals(query: &str, seconds: i64) -> Option<String> {
    let mut parts = query.split(INTERVAL);
    let mut longer = parts.next()?.to_owned();
    for part in parts {
        longer.push_str(INTERVAL);
        let (number, rest) = part.split_once('\'')?;
        let unit = UNITS.iter().find_map(|(unit, length)| Some((rest.strip_prefix(unit)?, *length)));
        match (number.parse::<i64>(), unit) {
            (Ok(number), Some((rest, length))) => longer.push_str(&format!("{}' SECOND{rest}", number * length + seconds)),
            _ => longer.push_str(part),
        }
    }
    Some(longer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_has_as_many_rules_as_asked_and_no_two_are_one() {
        let texts = Texts::of(70).unwrap();
        let rules = texts.load().unwrap();
        assert_eq!((rules.len(), texts.names.len()), (70, 70));
        let queries: BTreeSet<&str> = rules.rules().map(|rule| rule.text.as_str()).collect();
        assert_eq!(queries.len(), 70);
        let first: Vec<&str> = rules.rules().take(FIRST.len()).map(|rule| rule.header.name.as_str()).collect();
        assert_eq!(first, FIRST);
    }

    #[test]
    fn a_copy_looks_back_a_little_longer() {
        let query = "x INTERVAL '60' SECOND y INTERVAL '1 microsecond' z INTERVAL '5' MINUTE";
        let longer = with_longer_intervals(query, 3).unwrap();
        assert_eq!(longer, "x INTERVAL '63' SECOND y INTERVAL '1 microsecond' z INTERVAL '303' SECOND");
        let copy = copy_of("/* rule\nid: A\nname: a\nwindow: 2m\n*/\nSELECT 1", 120, 2).unwrap();
        assert_eq!(copy, "/* rule\nid: A-2\nname: a-2\nwindow: 128s\n*/\nSELECT 1");
    }
}
