//! One TOML file, every key also an `AEGIS_…` variable; an unknown key or variable is an error that names it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aegis_model::{CONTROL, SOC};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::nats::NatsSection;

/// Variables that start with `AEGIS_` and are not configuration.
const OTHER_VARIABLES: [&str; 7] =
    ["AEGIS_CONFIG", "AEGIS_CACHE", "AEGIS_BIN", "AEGIS_LOG", "AEGIS_ADMIN_KEY", "AEGIS_KILLS", "AEGIS_SEED"];

/// Longest time that the lake's hours, or an edge's receipts, may be kept and still go: a hundred years, about.
const MOST_KEEP_DAYS: u64 = 36_500;

/// Everything `aegis up`, `aegis control` and `aegis edge` can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// Most connections of one peer's address; 0: as many as there are. Those by the loopback are not counted.
    pub(crate) connections_per_peer: u32,
    /// The data folder; all state is below it.
    pub(crate) data: PathBuf,
    /// A folder of Cedar packs that every tenant has; empty: the packs the program was built with.
    pub(crate) policies: PathBuf,
    pub(crate) edge: EdgeSection,
    pub(crate) ledger: LedgerSection,
    pub(crate) bus: BusSection,
    pub(crate) nats: NatsSection,
    pub(crate) store: StoreSection,
    pub(crate) control: ControlSection,
    pub(crate) ingest: IngestSection,
    pub(crate) detect: DetectSection,
    pub(crate) lake: LakeSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8484)),
            connections_per_peer: 1024,
            data: PathBuf::from("aegis-data"),
            policies: PathBuf::new(),
            edge: EdgeSection::default(),
            ledger: LedgerSection::default(),
            bus: BusSection::default(),
            nats: NatsSection::default(),
            store: StoreSection::default(),
            control: ControlSection::default(),
            ingest: IngestSection::default(),
            detect: DetectSection::default(),
            lake: LakeSection::default(),
        }
    }
}

/// `[edge]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EdgeSection {
    /// This edge's name, part of its lanes' names.
    pub(crate) id: String,
    /// Largest authorize body, bytes.
    pub(crate) max_body_bytes: usize,
    /// How far a request's timestamp may be off, seconds.
    pub(crate) timestamp_skew_s: i64,
    /// How long an answer waits for its receipt, milliseconds; past it: deny.
    pub(crate) commit_wait_ms: u64,
    /// How old the control feed may be before mutating calls are denied, seconds; 0: however old.
    pub(crate) max_feed_age_s: i64,
    /// How old the control feed may be before this edge's tenants are told, by an event, seconds.
    pub(crate) feed_stale_after_s: i64,
    /// How old the copy of the feed that an edge starts from while it cannot read the feed may be before mutating calls are denied, seconds; also how
    /// old its copy of what other edges made of runs may be before runs count as `unknown`.
    pub(crate) max_snapshot_age_s: i64,
    /// How long after it was shipped a receipt should be in history and lake; then it is shipped again, seconds.
    pub(crate) confirm_after_s: u64,
    /// Where an edge sends what control answers (approvals, outcomes); empty: where it enrolled.
    pub(crate) control_url: String,
}

impl Default for EdgeSection {
    fn default() -> Self {
        Self {
            id: "edge-1".into(),
            max_body_bytes: 1 << 20,
            timestamp_skew_s: 300,
            commit_wait_ms: 5_000,
            max_feed_age_s: 0,
            feed_stale_after_s: 60,
            max_snapshot_age_s: 3_600,
            confirm_after_s: 30,
            control_url: String::new(),
        }
    }
}

/// `[ledger]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LedgerSection {
    /// Drafts that may wait for the writer.
    pub(crate) queue_capacity: usize,
    /// Most receipts in one commit.
    pub(crate) max_batch: usize,
    /// Most pages of a ledger file (4 KiB each); 0: no limit but the disk's.
    pub(crate) max_pages: u32,
    /// How many days a ledger keeps receipts that history and lake have; 0: for good. Over the embedded bus it keeps all.
    pub(crate) keep_days: u64,
}

impl Default for LedgerSection {
    fn default() -> Self {
        Self { queue_capacity: 8192, max_batch: 512, max_pages: 0, keep_days: 0 }
    }
}

/// `[bus]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BusSection {
    /// Most bytes of the event stream; when consumers lag behind that, publishers wait and the ledger spools.
    pub(crate) max_stream_bytes: u64,
}

impl Default for BusSection {
    fn default() -> Self {
        Self { max_stream_bytes: 8 << 30 }
    }
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreSection {
    /// A file, readable by its owner only, with the address of a Postgres database for the control plane's tables:
    /// `postgres://user:password@host:port/database`; empty: files in the data folder.
    pub(crate) url_file: PathBuf,
    /// How long a statement may go without that database's answer, seconds; past it the call fails, and the next one connects anew. Three times
    /// as long for statements of the history.
    pub(crate) answer_timeout_s: u64,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { url_file: PathBuf::new(), answer_timeout_s: 10 }
    }
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ControlSection {
    /// How long an agent token lasts, seconds.
    pub(crate) agent_token_ttl_s: i64,
    /// Whether callbacks about approvals may go to loopback addresses of this machine, and there without TLS; for tests and for a receiver
    /// beside the program. Otherwise they go to public addresses alone, over TLS.
    pub(crate) callback_loopback: bool,
    /// How long an enrolled edge that lived is not heard until its tenants are told, by an event, that it is silent, seconds.
    pub(crate) edge_silent_after_s: u64,
}

impl Default for ControlSection {
    fn default() -> Self {
        Self { agent_token_ttl_s: 24 * 3600, callback_loopback: false, edge_silent_after_s: 30 }
    }
}

/// `[ingest]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IngestSection {
    /// Largest webhook body, bytes.
    pub(crate) max_body_bytes: usize,
}

impl Default for IngestSection {
    fn default() -> Self {
        Self { max_body_bytes: 5 << 20 }
    }
}

/// `[detect]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DetectSection {
    /// A folder of rules; empty: the rules the program was built with.
    pub(crate) rules: PathBuf,
    /// Whether tenants' admins may activate rules of their own. A rule is a program that runs where all tenants' rules do: allow it where admins
    /// are trusted with that.
    pub(crate) own_rules: bool,
}

/// `[lake]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LakeSection {
    /// Whether events are written to the lake.
    pub(crate) enabled: bool,
    /// How long an event waits at most until it is written, seconds: longer makes fewer files.
    pub(crate) flush_s: u64,
    /// How many days after its end an hour of the lake is removed; 0: never. What receipts prove stays in the ledgers.
    pub(crate) keep_days: u64,
    /// Where it lies: `s3://bucket/prefix`; empty: `lake` in the data folder. The key to the bucket is no setting: it comes from the variables
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or from a file.
    pub(crate) url: String,
    /// The S3 server, `https://host[:port]`; empty: AWS's of the region.
    pub(crate) endpoint: String,
    /// The bucket's region; empty: `us-east-1`.
    pub(crate) region: String,
    /// Whether the bucket stands in the path of an address, not in front of the host's name.
    pub(crate) path_style: bool,
    /// The one host beside this machine to which plain `http://` may go.
    pub(crate) http_host: String,
    /// A file that only its owner can read, with `aws_access_key_id = ...` and `aws_secret_access_key = ...`; read again while the program runs.
    pub(crate) credentials_file: PathBuf,
}

impl Default for LakeSection {
    fn default() -> Self {
        Self {
            enabled: true,
            flush_s: 10,
            keep_days: 0,
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            path_style: true,
            http_host: String::new(),
            credentials_file: PathBuf::new(),
        }
    }
}

/// How variables of the lake's settings begin.
#[cfg(feature = "soc")]
const OF_LAKE: &str = "AEGIS_LAKE_";

#[cfg(feature = "soc")]
impl LakeSection {
    /// The lake's settings alone, for commands that read it: of the file, then of the environment.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let variables = std::env::vars().filter(|(name, _)| name.starts_with(OF_LAKE));
        Ok(Config::load_with(file, variables)?.lake)
    }
}

impl Config {
    /// Defaults, then the file, then the environment.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        Self::load_with(file, std::env::vars())
    }

    fn load_with(file: Option<&Path>, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut table = toml::Table::try_from(Self::default()).context("the defaults have no TOML form")?;
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
            // Parsed as the whole type first: its errors name the unknown key, with line and column.
            toml::from_str::<Self>(&text).with_context(|| format!("in the configuration {}", path.display()))?;
            merge(&mut table, toml::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))?);
        }
        overlay_environment(&mut table, variables)?;
        let config: Self = table.try_into().context("in the configuration")?;
        config.check()?;
        Ok(config)
    }

    /// Every key with its default, for `--help`.
    pub(crate) fn help() -> String {
        let keys = toml::to_string(&Self::default()).unwrap_or_default();
        format!(
            "Configuration keys (--config FILE) and their defaults:\n\n{keys}\nLogs: AEGIS_LOG, e.g. info or aegis_edge=debug"
        )
    }

    fn check(&self) -> anyhow::Result<()> {
        let id_fits = !self.edge.id.is_empty()
            && self.edge.id.len() <= 64
            && self.edge.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !id_fits {
            bail!("edge.id must match [a-z0-9_-]{{1,64}}; it is `{}`", self.edge.id);
        }
        if self.edge.id == CONTROL || self.edge.id == SOC {
            bail!(
                "edge.id must not be `{}`: that is what another part calls itself in receipts and events; give the edge another",
                self.edge.id
            );
        }
        if self.edge.max_feed_age_s < 0 || self.edge.max_snapshot_age_s < 0 {
            bail!("edge.max_feed_age_s and edge.max_snapshot_age_s must be 0 or more seconds");
        }
        // The feed is read every five seconds: below, a reading or two that fail would be told of.
        if !(10..=86_400).contains(&self.edge.feed_stale_after_s) {
            bail!("edge.feed_stale_after_s must be 10 to 86400 seconds; it is {}", self.edge.feed_stale_after_s);
        }
        // Below, what is on its way would be shipped twice.
        if !(5..=86_400).contains(&self.edge.confirm_after_s) {
            bail!("edge.confirm_after_s must be 5 to 86400 seconds; it is {}", self.edge.confirm_after_s);
        }
        if self.ledger.max_batch == 0 || self.ledger.queue_capacity == 0 {
            bail!("ledger.max_batch and ledger.queue_capacity must be at least 1");
        }
        // A start reads a day back, and counts from the newest.
        if self.ledger.keep_days == 1 || self.ledger.keep_days > MOST_KEEP_DAYS {
            bail!("ledger.keep_days must be 0 (for good), or 2 to {MOST_KEEP_DAYS} days; it is {}", self.ledger.keep_days);
        }
        if !(1..=3600).contains(&self.lake.flush_s) {
            bail!("lake.flush_s must be 1 to 3600 seconds; it is {}", self.lake.flush_s);
        }
        if self.lake.keep_days > MOST_KEEP_DAYS {
            bail!("lake.keep_days must be 0 (for good) to {MOST_KEEP_DAYS} days; it is {}", self.lake.keep_days);
        }
        // Below, an edge that misses a heartbeat or two would be told of.
        if !(10..=86_400).contains(&self.control.edge_silent_after_s) {
            bail!("control.edge_silent_after_s must be 10 to 86400 seconds; it is {}", self.control.edge_silent_after_s);
        }
        if !(1..=600).contains(&self.store.answer_timeout_s) {
            bail!("store.answer_timeout_s must be 1 to 600 seconds; it is {}", self.store.answer_timeout_s);
        }
        Ok(())
    }
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(section)) => merge(inner, section),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// `AEGIS_EDGE_MAX_BODY_BYTES` is `edge.max_body_bytes`. A variable that names no key is an error.
fn overlay_environment(table: &mut toml::Table, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<()> {
    for (name, text) in variables {
        let Some(path) = name.strip_prefix("AEGIS_") else { continue };
        if OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        if !set_leaf(table, &path.to_ascii_lowercase(), &text).with_context(|| format!("in the variable {name}"))? {
            bail!("the variable {name} names no configuration key; see `aegis up --help`");
        }
    }
    Ok(())
}

/// Sets the leaf that `path` (section and key joined by `_`) names; false where there is none.
fn set_leaf(table: &mut toml::Table, path: &str, text: &str) -> anyhow::Result<bool> {
    if let Some(leaf) = table.get_mut(path)
        && !leaf.is_table()
    {
        *leaf = match leaf {
            toml::Value::Integer(_) => {
                toml::Value::Integer(text.parse().with_context(|| format!("`{text}` is not a whole number"))?)
            }
            toml::Value::Boolean(_) => {
                toml::Value::Boolean(text.parse().with_context(|| format!("`{text}` is not true or false"))?)
            }
            _ => toml::Value::String(text.to_owned()),
        };
        return Ok(true);
    }
    for (section, value) in table.iter_mut() {
        if let (Some(rest), Some(inner)) = (path.strip_prefix(&format!("{section}_")), value.as_table_mut()) {
            return set_leaf(inner, rest, text);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table() -> toml::Table {
        toml::Table::try_from(Config::default()).unwrap()
    }

    #[test]
    fn every_key_is_also_a_variable() {
        let mut table = table();
        let variables = [
            ("AEGIS_LISTEN", "127.0.0.1:1"),
            ("AEGIS_CONNECTIONS_PER_PEER", "9"),
            ("AEGIS_EDGE_MAX_BODY_BYTES", "7"),
            ("AEGIS_STORE_ANSWER_TIMEOUT_S", "3"),
            ("AEGIS_CONTROL_CALLBACK_LOOPBACK", "true"),
            ("AEGIS_LAKE_ENABLED", "false"),
            ("AEGIS_LAKE_KEEP_DAYS", "90"),
            ("AEGIS_LAKE_URL", "s3://lakes/prod"),
            ("AEGIS_LAKE_PATH_STYLE", "false"),
            ("AEGIS_LAKE_HTTP_HOST", "minio.storage"),
            ("AEGIS_LAKE_CREDENTIALS_FILE", "/etc/aegis/s3"),
            ("AEGIS_DETECT_OWN_RULES", "true"),
            ("PATH", "x"),
            ("AEGIS_BIN", "y"),
        ];
        overlay_environment(&mut table, variables.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()))).unwrap();
        let config: Config = table.try_into().unwrap();
        assert!(config.control.callback_loopback && !Config::default().control.callback_loopback);
        assert!(config.detect.own_rules && !Config::default().detect.own_rules, "no tenant runs its programs here unasked");
        assert_eq!((config.listen.port(), config.edge.max_body_bytes, config.store.answer_timeout_s), (1, 7, 3));
        assert_eq!((config.connections_per_peer, Config::default().connections_per_peer), (9, 1024));
        assert!(!config.lake.enabled);
        assert_eq!((config.lake.keep_days, Config::default().lake.keep_days), (90, 0), "nothing goes unasked");
        assert_eq!((config.lake.url.as_str(), config.lake.http_host.as_str()), ("s3://lakes/prod", "minio.storage"));
        assert_eq!((config.lake.path_style, config.lake.credentials_file.as_path()), (false, Path::new("/etc/aegis/s3")));
        config.check().unwrap();
        for keep_days in [1, MOST_KEEP_DAYS + 1] {
            let of_ledger = LedgerSection { keep_days, ..LedgerSection::default() };
            let refused = Config { ledger: of_ledger, ..config.clone() }.check().unwrap_err().to_string();
            assert!(refused.contains("ledger.keep_days"), "{refused}");
        }
        let too_long = LakeSection { keep_days: MOST_KEEP_DAYS + 1, ..config.lake.clone() };
        assert!(Config { lake: too_long, ..config }.check().unwrap_err().to_string().contains("lake.keep_days"));
    }

    #[test]
    fn an_edge_in_control_s_process_has_a_name_of_its_own() {
        let named = |id: &str| Config { edge: EdgeSection { id: id.to_owned(), ..EdgeSection::default() }, ..Config::default() };
        named("control-1").check().unwrap();
        for taken in ["control", "soc"] {
            assert!(named(taken).check().unwrap_err().to_string().contains("edge.id"));
        }
    }

    #[test]
    fn the_help_names_every_key() {
        let help = Config::help();
        for key in [
            "listen",
            "max_body_bytes",
            "max_stream_bytes",
            "agent_token_ttl_s",
            "answer_timeout_s",
            "policies",
            "max_pages",
            "feed_stale_after_s",
            "flush_s",
        ] {
            assert!(help.contains(key), "{key} is missing in {help}");
        }
    }

    #[test]
    fn an_unknown_key_or_variable_is_an_error_that_names_it() {
        let error = toml::from_str::<Config>("[edge]\nmax_body = 3\n").unwrap_err().to_string();
        assert!(error.contains("max_body") && error.contains("line 2"), "{error}");
        let unknown = [("AEGIS_EGDE_ID".to_owned(), "x".to_owned())];
        let error = overlay_environment(&mut table(), unknown.into_iter()).unwrap_err().to_string();
        assert!(error.contains("AEGIS_EGDE_ID"), "{error}");
    }
}
