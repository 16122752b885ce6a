//! Figures, side by side in one run: authorize (durable receipts on) against a bare axum JSON echo and against one that syncs a file
//! before it answers, the parts of the action path by themselves, and event → alert → freeze. Prints tables and writes JSON; asserts nothing of
//! figures.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod contain;
mod detect;
mod drain;
mod echo;
mod fleet;
mod floor;
mod instance;
mod load;
mod paced;
mod parts;
mod report;
mod response;
mod stage;
mod story;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// The program's own allocator, so that the echo is not compared on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benchmarks of AegisAgent.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 6, global = true)]
    seconds: u64,
    /// Rounds; echo and authorize alternate, the median and the spread are shown
    #[arg(long, default_value_t = 3, global = true)]
    rounds: usize,
    /// Concurrent connections of the throughput measurement
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Agents that each cause a deny storm
    #[arg(long, default_value_t = 100)]
    storms: usize,
    /// Folder for the JSON
    #[arg(long, default_value = "bench/out", global = true)]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The bare echo server (started by the benchmark itself)
    #[command(hide = true)]
    Echo {
        /// Keep each body in this file before it is answered
        #[arg(long)]
        durable: Option<PathBuf>,
    },
    /// An edge of its own over NATS: authorize with everything behind it, and with less and less of it
    Fleet {
        /// The edge and the load on one core, NATS and control on another: what an edge notices that shares nothing but the disk
        #[arg(long)]
        apart: bool,
    },
    /// Edges of their own over NATS: from a deny storm at one to the moment when all deny
    Contain {
        /// How many edges; several runs with commas
        #[arg(long, value_delimiter = ',', default_values_t = [2, 16])]
        edges: Vec<usize>,
    },
    /// An edge's backlog: how long it takes to ship what was sealed while NATS was gone
    Drain {
        /// Receipts that wait at least
        #[arg(long, default_value_t = 1_000_000.0)]
        receipts: f64,
    },
    /// Calls of one kind, at a fixed rate for `--seconds`: something to look at with a profiler
    Hold {
        /// Low-risk reads instead of mutating calls
        #[arg(long)]
        read: bool,
        /// Requests a second; 0: as many as are answered
        #[arg(long, default_value_t = 4000.0)]
        rate: f64,
    },
    /// The detection engine by itself on one core: events a second, memory and latency by rules and tenants, beside a hot tenant, under junk keys
    Detect(detect::Options),
    /// One of its runs (started by the benchmark itself)
    #[command(hide = true)]
    DetectRun(detect::RunOptions),
    /// The engine's side of a comparison (started by bench/duckdb.py and bench/flink/run.py)
    #[command(hide = true)]
    DetectPeer(detect::PeerOptions),
}

fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    match cli.command.take() {
        Some(Command::Echo { durable: None }) => runtime.block_on(echo::serve()),
        Some(Command::Echo { durable: Some(path) }) => runtime.block_on(floor::serve(&path)),
        Some(Command::Hold { read, rate }) => runtime.block_on(story::hold(&plan(&cli), read, rate)),
        Some(Command::Fleet { apart }) => runtime.block_on(async {
            std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
            let fleet = fleet::measure(&plan(&cli), apart).await?;
            report::print_fleet(&fleet);
            report::write_json(&cli.out, "fleet", &fleet)
        }),
        Some(Command::Contain { edges }) => runtime.block_on(async {
            std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
            let mut all = Vec::new();
            for edges in edges {
                all.push(contain::measure(edges, cli.storms).await?);
            }
            report::print_contained(&all);
            report::write_json(&cli.out, "contain", &all)
        }),
        Some(Command::Drain { receipts }) => runtime.block_on(async {
            std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
            let drained = drain::measure(&plan(&cli), receipts).await?;
            report::print_drained(&drained);
            report::write_json(&cli.out, "drain", &drained)
        }),
        Some(Command::Detect(options)) => {
            std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
            let detected = detect::measure(&runtime, &options, cli.seconds, cli.rounds)?;
            if options.json {
                println!("{}", report::save_json(&cli.out, "detect", &detected)?.1);
                return Ok(());
            }
            detect::print(&detected);
            report::write_json(&cli.out, "detect", &detected)
        }
        Some(Command::DetectRun(options)) => detect::run(&options, cli.seconds),
        Some(Command::DetectPeer(options)) => detect::run_for_peer(&runtime, &options),
        None => {
            std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
            let parts = parts::measure()?;
            report::print_parts(&parts);
            runtime.block_on(async {
                let served = story::authorize_against_echo(&plan(&cli)).await?;
                report::print_served(&served);
                let responses = response::measure(cli.storms).await?;
                report::print_response(&responses);
                report::write(&cli.out, &parts, &served, &responses)
            })
        }
    }
}

fn plan(cli: &Cli) -> load::Plan {
    load::Plan { duration: Duration::from_secs(cli.seconds), rounds: cli.rounds, connections: cli.connections }
}
