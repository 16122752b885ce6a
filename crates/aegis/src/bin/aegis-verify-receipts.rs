//! `aegis-verify-receipts FILE.jsonl [--root KEY]`: the verifier alone, for auditors.
//! Exit 0 valid or self-consistent, 1 invalid, 2 bad input.

#[path = "../verifying.rs"]
mod verifying;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Verifies an export of receipts: hashes, links, sequence, proofs and event digests.
#[derive(Debug, Parser)]
#[command(name = "aegis-verify-receipts", version, max_term_width = 110)]
struct Cli {
    /// The export (JSON lines); `-` for standard input
    file: PathBuf,
    /// A trusted public key, base64 or a file with it; repeatable. Without one the best verdict is `self-consistent`
    #[arg(long = "root", value_name = "KEY")]
    roots: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    verifying::verify(&cli.file, &cli.roots, cli.json).unwrap_or_else(|error| {
        verifying::complain(&format!("aegis-verify-receipts: {error:#}"));
        ExitCode::from(verifying::BAD_INPUT)
    })
}
