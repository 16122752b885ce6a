//! What each command does, down to its exit code. Output for people on stdout, what went wrong on stderr.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "control")]
pub(crate) mod keys;
#[cfg(feature = "edge")]
pub(crate) mod policy;
pub(crate) mod receipts;
#[cfg(feature = "soc")]
pub(crate) mod rules;
#[cfg(feature = "edge")]
pub(crate) mod simulate;
#[cfg(feature = "edge")]
pub(crate) mod streams;

use std::io::{Read, Write};
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
        let features: Vec<&str> =
            [("edge", cfg!(feature = "edge")), ("control", cfg!(feature = "control")), ("soc", cfg!(feature = "soc"))]
                .into_iter()
                .filter_map(|(name, on)| on.then_some(name))
                .collect();
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
pub(crate) fn up(
    file: Option<&Path>,
    data: Option<std::path::PathBuf>,
    listen: Option<std::net::SocketAddr>,
) -> anyhow::Result<ExitCode> {
    let mut config = crate::config::Config::load(file)?;
    config.data = data.unwrap_or(config.data);
    config.listen = listen.unwrap_or(config.listen);
    start_logging("info");
    runtime()?.block_on(async {
        let running = match crate::up::start(config).await {
            Ok(running) => running,
            Err(error) => {
                eprintln!("aegis: cannot start: {error:#}");
                return Ok(ExitCode::from(SAID_NO));
            }
        };
        let data = running.data().display();
        let told = format!(
            "aegis: listening on http://{}\naegis: state in {data}\naegis: first key: aegis keys create --tenant ID --role admin --data {data}\n",
            running.address()
        );
        // In one piece, and whoever reads only the first line, or nothing, does not stop the program.
        let mut stdout = std::io::stdout();
        let _nobody_reads = stdout.write_all(told.as_bytes()).and_then(|()| stdout.flush());
        stop_signal().await?;
        tracing::info!("stopping");
        running.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(feature = "soc")]
pub(crate) fn demo(keep: Option<std::path::PathBuf>) -> anyhow::Result<ExitCode> {
    start_logging("error");
    let failed = runtime()?.block_on(crate::demo::play(keep))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(SAID_NO) })
}

/// SIGINT or SIGTERM.
#[cfg(feature = "soc")]
async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Logs on stderr; `AEGIS_LOG` overrides, in the syntax of `tracing`'s `EnvFilter`.
#[cfg(feature = "soc")]
fn start_logging(default: &str) {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("AEGIS_LOG").unwrap_or_else(|_| default.into());
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}
