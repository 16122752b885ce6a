//! What each command does, down to its exit code. Output for people on stdout, what went wrong on stderr.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "soc")]
pub(crate) mod activate;
#[cfg(feature = "soc")]
pub(crate) mod backtest;
#[cfg(feature = "edge")]
pub(crate) mod enrolment;
#[cfg(feature = "soc")]
pub(crate) mod every_tenant;
#[cfg(feature = "soc")]
pub(crate) mod explain;
#[cfg(feature = "control")]
pub(crate) mod keys;
#[cfg(feature = "edge")]
pub(crate) mod policy;
pub(crate) mod receipts;
#[cfg(feature = "soc")]
pub(crate) mod rule_sets;
#[cfg(feature = "soc")]
pub(crate) mod rules;
#[cfg(feature = "edge")]
pub(crate) mod run;
#[cfg(feature = "edge")]
pub(crate) mod simulate;
#[cfg(feature = "soc")]
pub(crate) mod sql;
#[cfg(feature = "edge")]
pub(crate) mod streams;

use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

pub(crate) use crate::verifying::{BAD_INPUT, SAID_NO};

/// Prints an error with its causes; bad input is the exit code of everything that could not even be checked.
pub(crate) fn report(error: anyhow::Error) -> ExitCode {
    eprintln!("aegis: {error:#}");
    ExitCode::from(BAD_INPUT)
}

pub(crate) fn version(json: bool) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        let known = [
            ("edge", cfg!(feature = "edge")),
            ("control", cfg!(feature = "control")),
            ("soc", cfg!(feature = "soc")),
            ("s3", cfg!(feature = "s3")),
        ];
        let features: Vec<&str> = known.into_iter().filter_map(|(name, on)| on.then_some(name)).collect();
        println!(
            "{}",
            serde_json::json!({"version": version, "canon_version": aegis_canon::CANON_VERSION, "features": features})
        );
    } else {
        println!("aegis {version}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn canon(file: Option<&Path>, hash: bool) -> anyhow::Result<ExitCode> {
    let input = read_input(file)?;
    match aegis_canon::canonicalize_bytes(&input) {
        Ok(canonical) => {
            let mut out = std::io::stdout().lock();
            if hash {
                writeln!(out, "{}", aegis_canon::sha256_hex(&canonical))?;
            } else {
                out.write_all(&canonical)?;
            }
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("{}: {error}", error.code());
            Ok(ExitCode::from(SAID_NO))
        }
    }
}

/// Answers every line of standard input (a text in hex, behind a space perhaps its size limit) with the hash of its canonical form or
/// the reason that it has none: how `tests/corpus` asks about many texts in one process.
pub(crate) fn canon_each_line() -> anyhow::Result<ExitCode> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let (text, max_bytes) = line.split_once(' ').unwrap_or((line.as_str(), ""));
        let input = hex::decode(text).ok().context("a line of standard input is not hex")?;
        let mut limits = aegis_canon::Limits::default();
        if !max_bytes.is_empty() {
            limits.max_bytes = max_bytes.parse().context("a size limit is not a number")?;
        }
        match aegis_canon::canonicalize_bytes_with(&input, limits) {
            Ok(canonical) => writeln!(out, "{}", aegis_canon::sha256_hex(&canonical))?,
            Err(error) => writeln!(out, "{}", error.code())?,
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The whole of a file, or of standard input for none or `-`.
pub(crate) fn read_input(file: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    match file {
        Some(path) if path != Path::new("-") => {
            input = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        _ => {
            std::io::stdin().lock().read_to_end(&mut input).context("cannot read standard input")?;
        }
    }
    Ok(input)
}

/// A runtime for a command that waits for the network or the disk.
#[cfg(feature = "edge")]
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

#[cfg(feature = "soc")]
pub(crate) fn demo(keep: Option<std::path::PathBuf>) -> anyhow::Result<ExitCode> {
    run::start_logging("error");
    let failed = runtime()?.block_on(crate::demo::play(keep))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(SAID_NO) })
}
