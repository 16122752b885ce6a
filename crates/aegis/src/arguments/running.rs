//! Arguments of what starts an instance or an edge, or makes one ready: keys, invitations, a NATS server's streams.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::commands::streams::StreamsArgs;
use crate::nats::NatsArgs;

#[derive(Debug, Args)]
pub(crate) struct EdgeArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EdgeCommand>,
    #[command(flatten)]
    pub(crate) run: UpArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EdgeCommand {
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

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Configuration file (TOML); every key is also a variable: edge.max_body_bytes is AEGIS_EDGE_MAX_BODY_BYTES
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Data folder, made where it is missing [default: aegis-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:8484]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
}

#[cfg(feature = "soc")]
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the data folder of the demo here instead of in a temporary one
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

#[cfg(feature = "control")]
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make an API key, and its tenant where that is missing; the key is printed once and only its hash is kept
    Create(KeysCreateArgs),
}

#[cfg(feature = "control")]
#[derive(Debug, Args)]
pub(crate) struct KeysCreateArgs {
    /// The tenant: [a-z0-9_-]{1,64}
    #[arg(long, value_name = "ID")]
    pub(crate) tenant: String,
    /// admin, registrar, approver, analyst or auditor
    #[arg(long)]
    pub(crate) role: String,
    /// A name for people to recognise the key by
    #[arg(long, default_value = "cli")]
    pub(crate) name: String,
    /// An approver group the holder is in; repeatable, `*` for all
    #[arg(long = "group", value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    /// Take the key from standard input instead of making one (at least 32 characters)
    #[arg(long)]
    pub(crate) value_stdin: bool,
    /// The data folder; works while `aegis up` runs on it [default: aegis-data]
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub(crate) data: Option<PathBuf>,
    /// Ask a running control plane instead; its admin key is read from the variable AEGIS_ADMIN_KEY
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamsCommand {
    /// Show the difference; exit 1 if there is one
    Plan {
        #[command(flatten)]
        args: StreamsArgs,
        /// The users file that the server includes: compared with what `aegis streams users` would write now
        #[cfg(feature = "control")]
        #[arg(long, value_name = "FILE", requires = "data")]
        users: Option<PathBuf>,
    },
    /// Make the server so; refuses, before it does anything, what would lose data
    Apply {
        #[command(flatten)]
        args: StreamsArgs,
        /// A stream that may lose data by it; repeatable
        #[arg(long = "may-lose", value_name = "STREAM")]
        may_lose: Vec<String>,
    },
    /// Where control runs: print the server's users, as a block for its configuration; one for each enrolled edge, `control`, each role in its process, and `admin`
    #[cfg(feature = "control")]
    Users {
        /// Control's data folder; the logins of `control`, of each role in its process and of `admin` are made there, where they are missing
        #[arg(long, value_name = "DIR", default_value = "aegis-data")]
        data: PathBuf,
        /// Write them to this file instead
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}
