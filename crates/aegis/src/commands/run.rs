//! The commands that run until they are told to stop: `aegis up`, `aegis control`, `aegis edge`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use super::{SAID_NO, runtime};
use crate::arguments::running::UpArgs;
use crate::config::Config;

fn configure(args: UpArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(args.config.as_deref())?;
    config.data = args.data.unwrap_or(config.data);
    config.listen = args.listen.unwrap_or(config.listen);
    args.nats.over(&mut config.nats);
    Ok(config)
}

#[cfg(feature = "soc")]
pub(crate) fn up(args: UpArgs, role: crate::up::Role) -> anyhow::Result<ExitCode> {
    let config = configure(args)?;
    start_logging("info");
    runtime()?.block_on(async {
        let running = match crate::up::start(config, role).await {
            Ok(running) => running,
            Err(error) => return Ok(no_start(&error)),
        };
        let data = running.data().display();
        tell(&format!(
            "aegis: listening on http://{}\naegis: state in {data}\naegis: first key: aegis keys create --tenant ID --role admin --data {data}\n",
            running.address()
        ));
        stop_signal().await?;
        tracing::info!("stopping");
        running.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn edge(args: UpArgs) -> anyhow::Result<ExitCode> {
    let mut config = configure(args)?;
    if config.data == Config::default().data {
        config.data = "aegis-edge-data".into();
    }
    start_logging("info");
    runtime()?.block_on(async {
        let running = match crate::edge::start(config).await {
            Ok(running) => running,
            Err(error) => return Ok(no_start(&error)),
        };
        tell(&format!(
            "aegis: listening on http://{}\naegis: edge {}, state in {}\n",
            running.address(),
            running.edge_id(),
            running.data().display()
        ));
        stop_signal().await?;
        tracing::info!("stopping");
        running.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn no_start(error: &anyhow::Error) -> ExitCode {
    eprintln!("aegis: cannot start: {error:#}");
    ExitCode::from(SAID_NO)
}

/// In one piece, and whoever reads only the first line, or nothing, does not stop the program.
fn tell(text: &str) {
    let mut stdout = std::io::stdout();
    let _nobody_reads = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// SIGINT or SIGTERM.
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
pub(crate) fn start_logging(default: &str) {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("AEGIS_LOG").unwrap_or_else(|_| default.into());
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}
