//! Arguments of detection rules, and of what asks the history and the lake.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum RulesCommand {
    /// Check rule files: line, column and a hint for each finding
    Lint {
        /// A rule file, a rule's folder or a folder of rules [default: the shipped rules]
        path: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of a rule's header, for editors
    Schema,
    /// Run the tests beside the rules on the real engine
    Test {
        /// A rule file, a rule's folder or a folder of rules
        #[arg(default_value = "rules")]
        path: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run rules over the history: what they would have told, by day and by key, with samples and cost
    Backtest {
        /// A rule file, a rule's folder or a folder of rules
        path: PathBuf,
        #[command(flatten)]
        args: HistoryArgs,
    },
    /// Compare two versions of a rule on the history: what the new one adds and drops
    Diff {
        /// The version that runs: a rule file, a rule's folder or a folder of rules
        old: PathBuf,
        /// The new version
        new: PathBuf,
        #[command(flatten)]
        args: HistoryArgs,
    },
    /// Say why a rule did or did not fire on an event of the history; exit 1 if it did not
    Explain(ExplainArgs),
    /// Make a rule one of a tenant's own, or one that every tenant has: checked, tested and run over the last days of history first; exit 1 if it was
    /// refused
    Activate(RulesActivateArgs),
    /// Give a rule that every tenant has another mode, on a data folder, or take it again as the program has it; exit 1 if it was refused
    Switch(RuleSwitchArgs),
    /// List the versions of a tenant's own rules, or what operators made of those that every tenant has, the newest first
    History(RuleHistoryArgs),
}

/// Whose rules, and where.
#[derive(Debug, Args)]
pub(crate) struct RulePlace {
    /// The data folder, also while `aegis up` or `aegis control` runs on it [default: aegis-data]
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub(crate) data: Option<PathBuf>,
    /// Ask a running control plane instead; its admin key, which names the tenant, is read from the variable AEGIS_ADMIN_KEY
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The tenant, on a data folder [default: the only one there is]
    #[arg(long, value_name = "ID", conflicts_with = "url")]
    pub(crate) tenant: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl RulePlace {
    pub(crate) fn folder(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| PathBuf::from("aegis-data"))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RulesActivateArgs {
    /// The rule: a file, or its folder with the tests beside it
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) place: RulePlace,
    /// On a data folder: the folder that `detect.rules` of the configuration names [default: the shipped rules]
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub(crate) rules: Option<PathBuf>,
    /// On a data folder: for every tenant, in place of the program's rule of its id, or as one more
    #[arg(long, conflicts_with_all = ["url", "tenant"])]
    pub(crate) every_tenant: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RuleSwitchArgs {
    /// The rule's id
    pub(crate) rule: String,
    /// What it is to be; `program`: what the program has, whatever was changed of it
    #[arg(long, value_parser = ["disabled", "log_only", "active", "program"])]
    pub(crate) mode: String,
    /// Why: a line for the changelog, which every tenant's receipt has too
    #[arg(long)]
    pub(crate) note: String,
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, value_name = "DIR", default_value = "aegis-data")]
    pub(crate) data: PathBuf,
    /// The folder that `detect.rules` of the configuration names [default: the shipped rules]
    #[arg(long, value_name = "DIR")]
    pub(crate) rules: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RuleHistoryArgs {
    /// A rule's id [default: all]
    pub(crate) rule: Option<String>,
    #[command(flatten)]
    pub(crate) place: RulePlace,
    /// What operators made of the rules that every tenant has
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) every_tenant: bool,
    /// Which sets of rules ran for every tenant, by the program or its folder `detect.rules`; of a rule: those that brought, changed or took it
    #[arg(long, conflicts_with_all = ["every_tenant", "tenant"])]
    pub(crate) sets: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The event's id, which is also that of its decision
    pub(crate) event: String,
    /// The rule: a file, or its folder
    pub(crate) path: PathBuf,
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, default_value = "aegis-data")]
    pub(crate) data: PathBuf,
    /// Read the lake instead of the history: it is behind the program by `lake.flush_s`
    #[arg(long)]
    pub(crate) lake: bool,
    /// The program's configuration file, for where its lake is (`lake.url`); its variables, AEGIS_LAKE_URL and so on, go before it
    #[arg(long, value_name = "FILE", requires = "lake")]
    pub(crate) config: Option<PathBuf>,
    /// The event's tenant [default: the one that has it]
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Read the history from this time on (RFC 3339) [default: as far back as the rule and an episode reach]
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Read the history up to this time (RFC 3339) [default: as long after the event as it can be evidence]
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// One SQL query over the table `events` (docs/lake.md has its columns); `-` for standard input
    #[arg(value_name = "QUERY")]
    pub(crate) query: String,
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, value_name = "DIR", default_value = "aegis-data")]
    pub(crate) data: PathBuf,
    /// The program's configuration file, for where its lake is (`lake.url`); its variables, AEGIS_LAKE_URL and so on, go before it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The tenant whose rows it sees [default: the only one that has any]
    #[arg(long, value_name = "ID")]
    pub(crate) tenant: Option<String>,
    /// Most rows of the answer
    #[arg(long, value_name = "ROWS", default_value_t = 1000, value_parser = rows_of_an_answer)]
    pub(crate) limit: usize,
    /// Longest time that it may take, seconds, at most 300
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub(crate) seconds: u64,
    /// As JSON, one object a row
    #[arg(long)]
    pub(crate) json: bool,
}

/// Most rows that an answer can be asked for: a table of them is made in memory.
const MAX_ANSWER_ROWS: usize = 1_000_000;

fn rows_of_an_answer(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rows) if (1..=MAX_ANSWER_ROWS).contains(&rows) => Ok(rows),
        _ => Err(format!("not a number of 1 to {MAX_ANSWER_ROWS}")),
    }
}

/// Which part of a history.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, default_value = "aegis-data")]
    pub(crate) data: PathBuf,
    /// Read the lake instead of the history: much faster over many events, and behind the program by `lake.flush_s`
    #[arg(long)]
    pub(crate) lake: bool,
    /// The program's configuration file, for where its lake is (`lake.url`); its variables, AEGIS_LAKE_URL and so on, go before it
    #[arg(long, value_name = "FILE", requires = "lake")]
    pub(crate) config: Option<PathBuf>,
    /// This tenant alone [default: all]
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Count alerts whose last evidence is not older than this (RFC 3339) [default: from the first event on]
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Count alerts whose last evidence is older than this (RFC 3339) [default: to the last event]
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}
