//! What can be asked of the program: its commands and their arguments. What they do is in `commands`.

#[cfg(feature = "edge")]
pub(crate) mod policy;
#[cfg(feature = "soc")]
pub(crate) mod rules;
#[cfg(feature = "edge")]
pub(crate) mod running;

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

#[cfg(feature = "edge")]
use crate::config::Config;

/// Proves that the action a human approved is the one that ran, and runs a SOC on that proof.
#[derive(Debug, Parser)]
#[command(name = "aegis", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start edge, control plane and SOC in one process, with all state in one folder
    #[cfg(feature = "soc")]
    Up(running::UpArgs),
    /// Start the control plane and the SOC without an edge, over NATS
    #[cfg(feature = "soc")]
    Control(running::UpArgs),
    /// Run an edge that was enrolled: authorize alone, over NATS
    #[cfg(feature = "edge")]
    #[command(args_conflicts_with_subcommands = true)]
    Edge(running::EdgeArgs),
    /// Play a confused-deputy attack against a fresh instance and check every step
    #[cfg(feature = "soc")]
    Demo(running::DemoArgs),
    /// Make API keys
    #[cfg(feature = "control")]
    #[command(subcommand)]
    Keys(running::KeysCommand),
    /// Check and test detection rules
    #[cfg(feature = "soc")]
    #[command(subcommand)]
    Rules(rules::RulesCommand),
    /// Ask the lake of security events, read-only, about one tenant: the table `events`, in SQL
    #[cfg(feature = "soc")]
    Sql(rules::SqlArgs),
    /// Check Cedar policies
    #[cfg(feature = "edge")]
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Compare a NATS server's streams and buckets with what this version needs, and make them so
    #[cfg(feature = "edge")]
    #[command(subcommand)]
    Streams(running::StreamsCommand),
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

/// Parses the arguments. `aegis up --help` names every configuration key with its default.
pub(crate) fn parse() -> Cli {
    let command = Cli::command();
    #[cfg(feature = "soc")]
    let command = command.mut_subcommand("up", |up| up.after_help(Config::help()));
    #[cfg(feature = "soc")]
    let command = command.mut_subcommand("control", |control| control.after_help(Config::help()));
    #[cfg(feature = "edge")]
    let command = command.mut_subcommand("edge", |edge| edge.after_help(Config::help()));
    let mut matches = command.get_matches();
    Cli::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptsCommand {
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
    pub(crate) file: PathBuf,
    /// A trusted public key, base64 or a file with it; repeatable. Without one the best verdict is `self-consistent`
    #[arg(long = "root", value_name = "KEY")]
    pub(crate) roots: Vec<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CanonArgs {
    /// The JSON text; standard input where it is missing
    pub(crate) file: Option<PathBuf>,
    /// Print the SHA-256 of the canonical bytes instead
    #[arg(long)]
    pub(crate) hash: bool,
    /// Answer each line of standard input, a text in hex, with its hash or the reason that it has none
    #[arg(long, hide = true, conflicts_with_all = ["file", "hash"])]
    pub(crate) each_line: bool,
}
