//! The program: argument parsing and composition only. What a command does is in the module of its name.
//! Exit codes: 0 done, 1 a check said no, 2 bad usage or input.

#[cfg(feature = "soc")]
mod adapters;
#[cfg(feature = "edge")]
mod again;
#[cfg(feature = "edge")]
mod client;
mod commands;
#[cfg(feature = "edge")]
mod config;
#[cfg(feature = "edge")]
mod confirm;
#[cfg(feature = "soc")]
mod demo;
#[cfg(feature = "edge")]
mod edge;
#[cfg(feature = "edge")]
mod enrolled;
#[cfg(feature = "edge")]
mod exposition;
#[cfg(feature = "edge")]
mod forward;
#[cfg(feature = "edge")]
mod nats;
#[cfg(feature = "edge")]
mod parts;
#[cfg(feature = "soc")]
mod rule_trial;
#[cfg(feature = "edge")]
mod serve;
#[cfg(feature = "control")]
mod store;
#[cfg(feature = "soc")]
mod up;
#[cfg(feature = "control")]
mod users;
mod verifying;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Most of a call's own time went into allocating; this allocator halves that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Proves that the action a human approved is the one that ran, and runs a SOC on that proof.
#[derive(Debug, Parser)]
#[command(name = "aegis", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start edge, control plane and SOC in one process, with all state in one folder
    #[cfg(feature = "soc")]
    Up(UpArgs),
    /// Start the control plane and the SOC without an edge, over NATS
    #[cfg(feature = "soc")]
    Control(UpArgs),
    /// Run an edge that was enrolled: authorize alone, over NATS
    #[cfg(feature = "edge")]
    #[command(args_conflicts_with_subcommands = true)]
    Edge(EdgeArgs),
    /// Play a confused-deputy attack against a fresh instance and check every step
    #[cfg(feature = "soc")]
    Demo(DemoArgs),
    /// Make API keys
    #[cfg(feature = "control")]
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Check and test detection rules
    #[cfg(feature = "soc")]
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Ask the lake of security events, read-only, about one tenant: the table `events`, in SQL
    #[cfg(feature = "soc")]
    Sql(SqlArgs),
    /// Check Cedar policies
    #[cfg(feature = "edge")]
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Compare a NATS server's streams and buckets with what this version needs, and make them so
    #[cfg(feature = "edge")]
    #[command(subcommand)]
    Streams(StreamsCommand),
    /// Export and verify receipts
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
    /// Print the canonical form (aegis-jcs-1) of a JSON text
    Canon(CanonArgs),
    /// Print the version
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[cfg(feature = "edge")]
#[derive(Debug, Args)]
struct EdgeArgs {
    #[command(subcommand)]
    command: Option<EdgeCommand>,
    #[command(flatten)]
    run: UpArgs,
}

#[cfg(feature = "edge")]
#[derive(Debug, Subcommand)]
enum EdgeCommand {
    /// Where control runs: invite an edge; the invitation is printed once, and used once
    #[cfg(feature = "control")]
    Invite(InviteArgs),
    /// Where the edge runs: make its keys and enrol it, with the invitation on standard input
    Enroll {
        /// The control plane
        #[arg(long, value_name = "URL")]
        control: String,
        /// The edge's data folder, made where it is missing
        #[arg(long, value_name = "DIR", default_value = "aegis-edge-data")]
        data: PathBuf,
    },
}

#[cfg(feature = "control")]
#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// The edge's name, part of its lanes' names: [a-z0-9_-]{1,64}
    #[arg(long, value_name = "ID")]
    pub(crate) id: String,
    /// A tenant that it serves; repeatable
    #[arg(long = "tenant", value_name = "ID", required = true)]
    pub(crate) tenants: Vec<String>,
    /// How long the invitation may be used, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(crate) ttl_s: i64,
    /// Control's data folder; works while it runs
    #[arg(long, value_name = "DIR", default_value = "aegis-data")]
    pub(crate) data: PathBuf,
}

#[cfg(feature = "edge")]
#[derive(Debug, Args)]
struct UpArgs {
    /// Configuration file (TOML); every key is also a variable: edge.max_body_bytes is AEGIS_EDGE_MAX_BODY_BYTES
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data folder, made where it is missing [default: aegis-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:8484]
    #[arg(long, value_name = "ADDR")]
    listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    nats: nats::NatsArgs,
}

#[cfg(feature = "soc")]
#[derive(Debug, Args)]
struct DemoArgs {
    /// Keep the data folder of the demo here instead of in a temporary one
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[cfg(feature = "control")]
#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make an API key, and its tenant where that is missing; the key is printed once and only its hash is kept
    Create(KeysCreateArgs),
}

#[cfg(feature = "control")]
#[derive(Debug, Args)]
struct KeysCreateArgs {
    /// The tenant: [a-z0-9_-]{1,64}
    #[arg(long, value_name = "ID")]
    tenant: String,
    /// admin, registrar, approver, analyst or auditor
    #[arg(long)]
    role: String,
    /// A name for people to recognise the key by
    #[arg(long, default_value = "cli")]
    name: String,
    /// An approver group the holder is in; repeatable, `*` for all
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Take the key from standard input instead of making one (at least 32 characters)
    #[arg(long)]
    value_stdin: bool,
    /// The data folder; works while `aegis up` runs on it [default: aegis-data]
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// Ask a running control plane instead; its admin key is read from the variable AEGIS_ADMIN_KEY
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "soc")]
#[derive(Debug, Subcommand)]
enum RulesCommand {
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
        /// A folder of rules
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
    /// Make a rule one of a tenant's own: checked, tested and run over the last days of its history first; exit 1 if it was refused
    Activate(RulesActivateArgs),
    /// List the versions of a tenant's own rules, the newest first
    History(RuleHistoryArgs),
}

/// Whose rules, and where.
#[cfg(feature = "soc")]
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

#[cfg(feature = "soc")]
impl RulePlace {
    pub(crate) fn folder(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| PathBuf::from("aegis-data"))
    }
}

#[cfg(feature = "soc")]
#[derive(Debug, Args)]
pub(crate) struct RulesActivateArgs {
    /// The rule: a file, or its folder with the tests beside it
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) place: RulePlace,
    /// On a data folder: the folder that `detect.rules` of the configuration names [default: the shipped rules]
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub(crate) rules: Option<PathBuf>,
}

#[cfg(feature = "soc")]
#[derive(Debug, Args)]
pub(crate) struct RuleHistoryArgs {
    /// A rule's id [default: all]
    pub(crate) rule: Option<String>,
    #[command(flatten)]
    pub(crate) place: RulePlace,
}

#[cfg(feature = "soc")]
#[derive(Debug, Args)]
struct ExplainArgs {
    /// The event's id, which is also that of its decision
    event: String,
    /// The rule: a file, or its folder
    path: PathBuf,
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, default_value = "aegis-data")]
    data: PathBuf,
    /// Read the lake instead of the history: it is behind the program by `lake.flush_s`
    #[arg(long)]
    lake: bool,
    /// The event's tenant [default: the one that has it]
    #[arg(long)]
    tenant: Option<String>,
    /// Read the history from this time on (RFC 3339) [default: as far back as the rule and an episode reach]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Read the history up to this time (RFC 3339) [default: as long after the event as it can be evidence]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "soc")]
#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// One SQL query over the table `events` (docs/lake.md has its columns); `-` for standard input
    #[arg(value_name = "QUERY")]
    pub(crate) query: String,
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, value_name = "DIR", default_value = "aegis-data")]
    pub(crate) data: PathBuf,
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
#[cfg(feature = "soc")]
const MAX_ANSWER_ROWS: usize = 1_000_000;

#[cfg(feature = "soc")]
fn rows_of_an_answer(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rows) if (1..=MAX_ANSWER_ROWS).contains(&rows) => Ok(rows),
        _ => Err(format!("not a number of 1 to {MAX_ANSWER_ROWS}")),
    }
}

/// Which part of a history.
#[cfg(feature = "soc")]
#[derive(Debug, Args)]
struct HistoryArgs {
    /// The data folder, also while `aegis up` or `aegis control` runs on it
    #[arg(long, default_value = "aegis-data")]
    data: PathBuf,
    /// Read the lake instead of the history: much faster over many events, and behind the program by `lake.flush_s`
    #[arg(long)]
    lake: bool,
    /// This tenant alone [default: all]
    #[arg(long)]
    tenant: Option<String>,
    /// Count alerts whose last evidence is not older than this (RFC 3339) [default: from the first event on]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Count alerts whose last evidence is older than this (RFC 3339) [default: to the last event]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "edge")]
#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Validate Cedar files against the schema; without files, the shipped packs
    Validate {
        /// Cedar files, checked together
        files: Vec<PathBuf>,
        /// Registered tools (JSON: an array of the bodies of POST /v1/tools), for policies that name their arguments
        #[arg(long, value_name = "FILE")]
        tools: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what policies would decide about calls on record, and what they would change
    Simulate(SimulateArgs),
}

#[cfg(feature = "edge")]
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// A tenant's policies to try, beside the packs; none: the packs alone
    pub(crate) files: Vec<PathBuf>,
    /// Calls on record, one JSON object a line; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) calls: PathBuf,
    /// A tenant's policies that run now, to compare with; repeatable. None: the packs alone
    #[arg(long, value_name = "FILE")]
    pub(crate) running: Vec<PathBuf>,
    /// The folder that `policies` of the configuration names [default: the shipped packs]
    #[arg(long, value_name = "DIR")]
    pub(crate) packs: Option<PathBuf>,
    /// Registered tools (JSON: an array of the bodies of POST /v1/tools)
    #[arg(long, value_name = "FILE")]
    pub(crate) tools: Option<PathBuf>,
    /// As JSON, one object a call
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(feature = "edge")]
#[derive(Debug, Subcommand)]
enum StreamsCommand {
    /// Show the difference; exit 1 if there is one
    Plan(commands::streams::StreamsArgs),
    /// Make the server so; refuses, before it does anything, what would lose data
    Apply {
        #[command(flatten)]
        args: commands::streams::StreamsArgs,
        /// A stream that may lose data by it; repeatable
        #[arg(long = "may-lose", value_name = "STREAM")]
        may_lose: Vec<String>,
    },
    /// Where control runs: print the server's users, as a block for its configuration; one for each enrolled edge, `control` and `admin`
    #[cfg(feature = "control")]
    Users {
        /// Control's data folder; the logins of `control` and `admin` are made there
        #[arg(long, value_name = "DIR", default_value = "aegis-data")]
        data: PathBuf,
        /// Write them to this file instead
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ReceiptsCommand {
    /// Write a tenant's receipts as JSON lines to standard output
    Export {
        #[arg(long, value_name = "ID")]
        tenant: String,
        /// The data folder [default: aegis-data]
        #[arg(long, value_name = "DIR", default_value = "aegis-data")]
        data: PathBuf,
    },
    /// Verify an export: hashes, links, sequence, proofs and event digests
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The export (JSON lines); `-` for standard input
    file: PathBuf,
    /// A trusted public key, base64 or a file with it; repeatable. Without one the best verdict is `self-consistent`
    #[arg(long = "root", value_name = "KEY")]
    roots: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CanonArgs {
    /// The JSON text; standard input where it is missing
    file: Option<PathBuf>,
    /// Print the SHA-256 of the canonical bytes instead
    #[arg(long)]
    hash: bool,
    /// Answer each line of standard input, a text in hex, with its hash or the reason that it has none
    #[arg(long, hide = true, conflicts_with_all = ["file", "hash"])]
    each_line: bool,
}

fn main() -> ExitCode {
    let cli = parse();
    let done = match cli.command {
        #[cfg(feature = "soc")]
        Command::Up(args) => commands::run::up(args, up::Role::Whole),
        #[cfg(feature = "soc")]
        Command::Control(args) => commands::run::up(args, up::Role::Control),
        #[cfg(feature = "edge")]
        Command::Edge(EdgeArgs { command: None, run }) => commands::run::edge(run),
        #[cfg(feature = "control")]
        Command::Edge(EdgeArgs { command: Some(EdgeCommand::Invite(args)), .. }) => commands::enrolment::invite(&args),
        #[cfg(feature = "edge")]
        Command::Edge(EdgeArgs { command: Some(EdgeCommand::Enroll { control, data }), .. }) => {
            commands::enrolment::enroll(&control, &data)
        }
        #[cfg(feature = "soc")]
        Command::Demo(args) => commands::demo(args.keep),
        #[cfg(feature = "control")]
        Command::Keys(KeysCommand::Create(args)) => commands::keys::create(args),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Lint { path, json }) => commands::rules::lint(path.as_deref(), json),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Schema) => commands::rules::schema(),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Test { path, json }) => commands::rules::test(&path, json),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Backtest { path, args }) => commands::backtest::backtest(&path, &args),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Diff { old, new, args }) => commands::backtest::diff(&old, &new, &args),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Explain(args)) => commands::explain::explain(&args),
        #[cfg(feature = "soc")]
        Command::Sql(args) => commands::sql::sql(&args),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::Activate(args)) => commands::activate::activate(&args),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::History(args)) => commands::activate::history(&args),
        #[cfg(feature = "edge")]
        Command::Policy(PolicyCommand::Validate { files, tools, json }) => {
            commands::policy::validate(&files, tools.as_deref(), json)
        }
        #[cfg(feature = "edge")]
        Command::Policy(PolicyCommand::Simulate(args)) => commands::simulate::simulate(&args),
        #[cfg(feature = "edge")]
        Command::Streams(StreamsCommand::Plan(args)) => commands::streams::plan(&args),
        #[cfg(feature = "edge")]
        Command::Streams(StreamsCommand::Apply { args, may_lose }) => commands::streams::apply(&args, &may_lose),
        #[cfg(feature = "control")]
        Command::Streams(StreamsCommand::Users { data, write }) => commands::streams::users(&data, write.as_deref()),
        Command::Receipts(ReceiptsCommand::Export { tenant, data }) => commands::receipts::export(&tenant, &data),
        Command::Receipts(ReceiptsCommand::Verify(args)) => verifying::verify(&args.file, &args.roots, args.json),
        Command::Canon(args) if args.each_line => commands::canon_each_line(),
        Command::Canon(args) => commands::canon(args.file.as_deref(), args.hash),
        Command::Version { json } => commands::version(json),
    };
    done.unwrap_or_else(commands::report)
}

/// Parses the arguments. `aegis up --help` names every configuration key with its default.
fn parse() -> Cli {
    let command = Cli::command();
    #[cfg(feature = "soc")]
    let command = command.mut_subcommand("up", |up| up.after_help(config::Config::help()));
    #[cfg(feature = "soc")]
    let command = command.mut_subcommand("control", |control| control.after_help(config::Config::help()));
    #[cfg(feature = "edge")]
    let command = command.mut_subcommand("edge", |edge| edge.after_help(config::Config::help()));
    let mut matches = command.get_matches();
    Cli::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
}
