//! What servers say they are, and what follows for a cluster of them: the least of all counts, as a stream's leader may be any of them.
//! Promises that nothing is believed to be there which one of them lacks, or of which one says nothing that can be read.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A server's version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    const fn of(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }

    /// `2.11.0`, `v2.11.0-RC.1`; what is no version is older than any.
    fn read(text: &str) -> Self {
        let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        match (next(), next(), next()) {
            (Some(major), Some(minor), patch) => Self { major, minor, patch: patch.unwrap_or(0) },
            _ => Self::default(),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What servers have learned since 2.9, as far as it could be of use here (docs/specs/event.md says what of it is used).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// A consumer with several filters.
    SeveralFilters,
    /// Messages with a time to live of their own.
    MessageTtl,
    /// Publishes that are stored all or not at all.
    AtomicBatches,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 3] = [Self::SeveralFilters, Self::MessageTtl, Self::AtomicBatches];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SeveralFilters => "several_filters",
            Self::MessageTtl => "message_ttl",
            Self::AtomicBatches => "atomic_batches",
        }
    }

    /// The version that has it first, and the level of JetStream's API, where there were levels by then.
    const fn since(self) -> (Version, Option<u32>) {
        match self {
            Self::SeveralFilters => (Version::of(2, 10), None),
            Self::MessageTtl => (Version::of(2, 11), Some(1)),
            Self::AtomicBatches => (Version::of(2, 12), Some(2)),
        }
    }
}

/// The servers that a client can come to, as those of them that answered are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Servers {
    /// The oldest of them.
    pub version: Version,
    /// The newest of them: another one while a cluster is mixed.
    pub newest: Version,
    /// The least level of JetStream's API; none where one of them tells none, as old ones do.
    pub api_level: Option<u32>,
    /// How many they are.
    pub count: usize,
    /// What all of them have.
    pub features: Vec<Feature>,
}

impl Servers {
    /// True if all of them have it.
    #[must_use]
    pub fn have(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// The names of what all of them have, with commas.
    #[must_use]
    pub fn feature_names(&self) -> String {
        let names: Vec<&str> = self.features.iter().map(|feature| feature.as_str()).collect();
        names.join(",")
    }

    /// The least of those that told; none if nobody did.
    pub(super) fn least(told: &[Told]) -> Option<Self> {
        let versions = || told.iter().map(|one| Version::read(&one.version));
        let levels: Option<Vec<u32>> = told.iter().map(|one| one.api_lvl).collect();
        let all_have = |feature: &Feature| told.iter().all(|one| one.has(*feature));
        Some(Self {
            version: versions().min()?,
            newest: versions().max()?,
            api_level: levels.and_then(|levels| levels.into_iter().min()),
            count: told.len(),
            features: Feature::ALL.into_iter().filter(all_have).collect(),
        })
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats-server {}", self.version)?;
        if self.newest != self.version {
            write!(f, " to {}", self.newest)?;
        }
        if let Some(level) = self.api_level {
            write!(f, ", JetStream API level {level}")?;
        }
        if self.count > 1 {
            write!(f, ", {} servers", self.count)?;
        }
        let features = if self.features.is_empty() { "nothing that came after 2.9".to_owned() } else { self.feature_names() };
        write!(f, ": {features}")
    }
}

/// What a server says of itself. Not to be believed further than that: it is what it says.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Told {
    #[serde(default)]
    pub(super) server_id: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) api_lvl: Option<u32>,
    /// The addresses of its cluster's servers.
    #[serde(default)]
    pub(super) connect_urls: Vec<String>,
}

impl Told {
    /// The first line of a connection.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line.strip_prefix(b"INFO ")?).ok()
    }

    fn has(&self, feature: Feature) -> bool {
        match (feature.since(), self.api_lvl) {
            ((_, Some(needed)), Some(level)) => level >= needed,
            ((version, _), _) => Version::read(&self.version) >= version,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(version: &str, api_lvl: Option<u32>) -> Told {
        Told { server_id: version.to_owned(), version: version.to_owned(), api_lvl, ..Told::default() }
    }

    #[test]
    fn a_version_is_read_and_what_is_none_is_older_than_any() {
        let read = |text: &str| Version::read(text).to_string();
        assert_eq!(
            ["2.9.10", "v2.11.0-RC.1", "2.12", "3.0.0+x"].map(read),
            ["2.9.10", "2.11.0", "2.12.0", "3.0.0"].map(str::to_owned)
        );
        for none in ["", "x", "2", "2.x", "99999999999.1.1", "-1.2.3"] {
            assert_eq!(Version::read(none), Version::default(), "{none}");
        }
        assert!(Version::read("2.9.10") < Version::read("2.10.0"));
    }

    #[test]
    fn what_one_lacks_the_cluster_lacks() {
        let of = |servers: &[&Told]| Servers::least(&servers.iter().map(|told| (*told).clone()).collect::<Vec<_>>()).unwrap();
        let (old, ten, current) = (told("2.9.10", None), told("2.10.1", None), told("2.15.2", Some(5)));
        assert!(of(&[&old]).features.is_empty());
        assert_eq!(of(&[&ten]).features, [Feature::SeveralFilters]);
        assert_eq!(of(&[&current]).features, Feature::ALL);
        assert_eq!(of(&[&told("2.11.3", None)]).features, [Feature::SeveralFilters, Feature::MessageTtl]);
        assert_eq!(of(&[&told("9.9.9", Some(0))]).features, [Feature::SeveralFilters], "the level counts where there is one");
        assert!(of(&[&told("of my own", None)]).features.is_empty(), "what is not known is not there");

        let mixed = of(&[&current, &ten, &old]);
        assert_eq!((mixed.features.len(), mixed.api_level, mixed.count), (0, None, 3));
        assert_eq!(mixed.to_string(), "nats-server 2.9.10 to 2.15.2, 3 servers: nothing that came after 2.9");
        let alone = of(&[&current]);
        assert_eq!(alone.to_string(), "nats-server 2.15.2, JetStream API level 5: several_filters,message_ttl,atomic_batches");
        assert_eq!(
            serde_json::to_value(&alone).unwrap(),
            serde_json::json!({
                "version": "2.15.2", "newest": "2.15.2", "api_level": 5, "count": 1,
                "features": ["several_filters", "message_ttl", "atomic_batches"],
            })
        );
        assert!(Servers::least(&[]).is_none());
    }

    #[test]
    fn a_server_says_what_it_is_in_its_first_line() {
        let line =
            br#"INFO {"server_id":"N","version":"2.15.2","api_lvl":5,"jetstream":true,"connect_urls":["127.0.0.1:4222"]} "#;
        let said = Told::read(line).unwrap();
        assert_eq!((said.version.as_str(), said.api_lvl, said.connect_urls.len()), ("2.15.2", Some(5), 1));
        for bad in [&b"HTTP/1.1 400"[..], b"INFO ", b"INFO [1]", b"INFO {\"version\":2}", b"-ERR 'x'"] {
            assert!(Told::read(bad).is_none(), "{bad:?}");
        }
    }
}
