//! Sets of rules of any size: the shipped ones that run, and copies of them under other ids, each with other constants, so that no two are one query.
//! A copy looks at all that its original looks at, or at one tool alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aegis_detect::RuleSet;
use aegis_model::RuleMode;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::calls::tool;

/// They come first: in a set of so many every story is told of. The last is a row pattern, which another engine may not have: a set of ten is without it.
pub(crate) const FIRST: [&str; 11] = [
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
    "denied-until-allowed",
];
/// A copy's window grows by so many times what its intervals do: frames stand on frames, no more of them than this.
const FRAMES: i64 = 4;
/// The longest window that a rule may have, in seconds.
const LONGEST_WINDOW: i64 = 86_400;
const INTERVAL: &str = "INTERVAL '";
const FROM_EVENTS: &str = "FROM events";
const FROM_ALERTS: &str = "FROM alerts";
/// Units of intervals, in seconds. Finer ones are left as they are.
const UNITS: [(&str, i64); 4] = [(" SECOND", 1), (" MINUTE", 60), (" HOUR", 3600), (" DAY", 86_400)];

/// How a set is filled where there are not as many shipped rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fill {
    /// With copies that look at every event that their original looks at
    Copies,
    /// With copies of which each looks at the events of one tool alone
    Apart,
}

impl Fill {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Copies => "copies",
            Self::Apart => "apart",
        }
    }

    /// How a set is filled, for whoever reads the figures.
    pub(crate) const fn how(self) -> &'static str {
        match self {
            Self::Copies => {
                "shipped rules that run; of those that are repeated, the nth copy has every interval of its query n seconds longer, and its window 4n; where that would be over a day, both are n seconds shorter"
            }
            Self::Apart => {
                "the same copies, but each looks at one tool alone: the WHERE of the nth begins with tool = 'crm-n', and a rule on rules reads the nth copies of those that it names; calls and stories are spread evenly over these tools and crm"
            }
        }
    }
}

/// The texts of some rules.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Texts {
    texts: Vec<(PathBuf, String)>,
    /// Of each rule's id the name of the shipped rule that it is, or is a copy of.
    pub(crate) names: BTreeMap<String, String>,
    /// The one tool that it looks at, of each that looks at one.
    pub(crate) tools: BTreeMap<String, String>,
}

impl Texts {
    /// So many rules.
    pub(crate) fn of(count: usize, fill: Fill) -> anyhow::Result<Self> {
        let shipped = RuleSet::shipped()?;
        let mut rules: Vec<_> = shipped.rules().filter(|rule| rule.header.mode != RuleMode::Disabled).collect();
        // Who reads the alerts of others comes after all of them.
        let place = |name: &str| FIRST.iter().position(|first| name == *first).unwrap_or(FIRST.len());
        rules.sort_by_key(|rule| (place(&rule.header.name), rule.text.contains(FROM_ALERTS)));
        anyhow::ensure!(!rules.is_empty(), "no shipped rule runs");
        let names: Vec<&str> = rules.iter().map(|rule| rule.header.name.as_str()).collect();
        let mut all = Self { texts: Vec::new(), names: BTreeMap::new(), tools: BTreeMap::new() };
        for n in 0..count {
            let (rule, copy) = (rules[n % rules.len()], n / rules.len());
            let header = &rule.header;
            let (id, text) = if copy == 0 {
                (header.id.clone(), rule.text.clone())
            } else {
                let id = format!("{}-{copy}", header.id);
                let mut text = copy_of(&rule.text, header.window_s, copy as i64);
                if fill == Fill::Apart {
                    text = text.and_then(|text| apart(&text, &names, copy));
                    all.tools.insert(id.clone(), tool(copy));
                }
                (id, text.with_context(|| format!("{} cannot be copied", header.name))?)
            };
            all.names.insert(id.clone(), header.name.clone());
            all.texts.push((PathBuf::from(format!("{id}/rule.sql")), text));
        }
        Ok(all)
    }

    /// How many tools a log needs, so that each rule that looks at one alone sees something, and some calls are of none of theirs.
    pub(crate) fn tools_of_a_log(&self) -> usize {
        1 + self.tools.values().collect::<BTreeSet<_>>().len()
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

/// The rule with another id and name, and longer by so many seconds; shorter by as many where its window cannot be longer.
fn copy_of(text: &str, window_s: i64, copy: i64) -> Option<String> {
    let (header, query) = text.split_once("*/")?;
    // A shorter window by as much as one frame alone: it holds them, however many stand on one another.
    let (window_s, change) = match window_s + FRAMES * copy {
        longer if longer <= LONGEST_WINDOW => (longer, copy),
        _ => (window_s - copy, -copy),
    };
    let mut copied = String::new();
    for line in header.lines() {
        match line.split_once(": ") {
            Some((key @ ("id" | "name"), value)) => copied.push_str(&format!("{key}: {}-{copy}", value.trim())),
            Some(("window", _)) => copied.push_str(&format!("window: {window_s}s")),
            _ => copied.push_str(line),
        }
        copied.push('\n');
    }
    copied.push_str("*/");
    copied.push_str(&with_other_intervals(query, change)?);
    Some(copied)
}

/// A copy that looks at its own tool alone; on rules, at the same copies of those that it reads.
fn apart(text: &str, names: &[&str], copy: usize) -> Option<String> {
    let (header, query) = text.split_once("*/")?;
    let query = if query.contains(FROM_ALERTS) {
        let named = |query: String, name: &&str| query.replace(&format!("'{name}'"), &format!("'{name}-{copy}'"));
        names.iter().fold(query.to_owned(), named)
    } else {
        at_one_tool(query, &tool(copy))?
    };
    Some(format!("{header}*/{query}"))
}

/// The query with one more condition, in the WHERE of every scan of events: it has to have one, of conditions that AND joins.
fn at_one_tool(query: &str, tool: &str) -> Option<String> {
    let mut parts = query.split(FROM_EVENTS);
    let mut narrowed = parts.next()?.to_owned();
    for part in parts {
        let behind = part.trim_start();
        let conditions = behind.strip_prefix("WHERE ")?;
        let space = &part[..part.len() - behind.len()];
        narrowed.push_str(&format!("{FROM_EVENTS}{space}WHERE tool = '{tool}' AND {conditions}"));
    }
    Some(narrowed).filter(|narrowed| narrowed.len() > query.len())
}

/// The query with intervals that are so many seconds longer, or shorter. None: nothing would be left of one.
fn with_other_intervals(query: &str, seconds: i64) -> Option<String> {
    let mut parts = query.split(INTERVAL);
    let mut changed = parts.next()?.to_owned();
    for part in parts {
        changed.push_str(INTERVAL);
        let (number, rest) = part.split_once('\'')?;
        let unit = UNITS.iter().find_map(|(unit, length)| Some((rest.strip_prefix(unit)?, *length)));
        match (number.parse::<i64>(), unit) {
            (Ok(number), Some((rest, length))) => {
                let number = Some(number * length + seconds).filter(|number| *number > 0)?;
                changed.push_str(&format!("{number}' SECOND{rest}"));
            }
            _ => changed.push_str(part),
        }
    }
    Some(changed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_as_many_rules_as_asked_and_no_two_are_one() {
        for fill in [Fill::Copies, Fill::Apart] {
            let texts = Texts::of(70, fill).unwrap();
            let rules = texts.load().unwrap();
            assert_eq!((rules.len(), texts.names.len()), (70, 70));
            let queries: BTreeSet<&str> = rules.rules().map(|rule| rule.text.as_str()).collect();
            assert_eq!(queries.len(), 70);
            let first: Vec<&str> = rules.rules().take(FIRST.len()).map(|rule| rule.header.name.as_str()).collect();
            assert_eq!(first, FIRST);
        }
    }

    #[test]
    fn a_set_apart_differs_from_one_of_copies_in_what_its_copies_look_at_alone() {
        let (copies, apart) = (Texts::of(70, Fill::Copies).unwrap(), Texts::of(70, Fill::Apart).unwrap());
        assert_eq!(copies.names, apart.names);
        assert_eq!((copies.tools.len(), copies.tools_of_a_log()), (0, 1));
        for ((path, copy), (same_path, narrowed)) in copies.texts.iter().zip(&apart.texts) {
            assert_eq!(path, same_path);
            let id = path.parent().unwrap().to_str().unwrap();
            let Some(tool) = apart.tools.get(id) else {
                assert_eq!(copy, narrowed);
                continue;
            };
            let number = id.rsplit('-').next().unwrap();
            assert_eq!(*tool, format!("crm-{number}"));
            if copy.contains(FROM_ALERTS) {
                assert!(narrowed.contains(&format!("'deny-storm-{number}'")) && !narrowed.contains("'deny-storm'"), "{narrowed}");
            } else {
                assert_eq!(narrowed.replace(&format!("tool = '{tool}' AND "), ""), *copy);
                assert_eq!(narrowed.matches(&format!("WHERE tool = '{tool}' AND ")).count(), copy.matches(FROM_EVENTS).count());
            }
        }
        // As many as there are copies of the first rule, and the first tool.
        let of_first = apart.names.values().filter(|name| *name == FIRST[0]).count();
        assert_eq!(apart.tools_of_a_log(), of_first);
    }

    #[test]
    fn a_copy_apart_has_its_tool_in_every_where_and_one_that_cannot_have_it_is_none() {
        let query = "x AS (SELECT a FROM events\n  WHERE b), SELECT c FROM events WHERE d";
        let narrowed = at_one_tool(query, "t").unwrap();
        assert_eq!(
            narrowed,
            "x AS (SELECT a FROM events\n  WHERE tool = 't' AND b), SELECT c FROM events WHERE tool = 't' AND d"
        );
        for without in ["SELECT a FROM events", "SELECT a FROM events JOIN x", "SELECT a FROM others WHERE b"] {
            assert_eq!(at_one_tool(without, "t"), None);
        }
        let on_rules = apart("/* a */ FROM alerts WHERE rule_name IN ('a', 'a-b')", &["a", "a-b"], 3).unwrap();
        assert_eq!(on_rules, "/* a */ FROM alerts WHERE rule_name IN ('a-3', 'a-b-3')");
    }

    #[test]
    fn a_copy_looks_back_a_little_longer() {
        let query = "x INTERVAL '60' SECOND y INTERVAL '1 microsecond' z INTERVAL '5' MINUTE";
        let longer = with_other_intervals(query, 3).unwrap();
        assert_eq!(longer, "x INTERVAL '63' SECOND y INTERVAL '1 microsecond' z INTERVAL '303' SECOND");
        let copy = copy_of("/* rule\nid: A\nname: a\nwindow: 2m\n*/\nSELECT 1", 120, 2).unwrap();
        assert_eq!(copy, "/* rule\nid: A-2\nname: a-2\nwindow: 128s\n*/\nSELECT 1");
    }

    #[test]
    fn a_copy_of_a_rule_of_a_day_looks_back_a_little_less_and_its_window_still_holds_its_frames() {
        let rule =
            "/* rule\nid: A\nname: a\nwindow: 24h\n*/\nx INTERVAL '12' HOUR y INTERVAL '12' HOUR z INTERVAL '1 microsecond'";
        let copy = copy_of(rule, LONGEST_WINDOW, 2).unwrap();
        let expected = "x INTERVAL '43198' SECOND y INTERVAL '43198' SECOND z INTERVAL '1 microsecond'";
        assert_eq!(copy, format!("/* rule\nid: A-2\nname: a-2\nwindow: 86398s\n*/\n{expected}"));
        // The last that can be longer.
        assert!(copy_of("/* rule\nwindow: 23h\n*/", LONGEST_WINDOW - 2 * FRAMES, 2).unwrap().contains("window: 86400s"));
        assert_eq!(copy_of("/* rule\nwindow: 24h\n*/ INTERVAL '2' SECOND", LONGEST_WINDOW, 2), None);
    }

    #[test]
    fn every_shipped_rule_can_be_copied_as_often_as_a_large_set_has_it() {
        let texts = Texts::of(200, Fill::Copies).unwrap();
        assert_eq!(texts.load().unwrap().len(), 200);
    }
}
