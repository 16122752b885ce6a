//! Arguments of Cedar policies.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
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
