//! The program: composition only. What it can be asked is in `arguments`, what a command does in the module of its name in `commands`.
//! Exit codes: 0 done, 1 a check said no, 2 bad usage or input.

#[cfg(feature = "soc")]
mod adapters;
#[cfg(feature = "edge")]
mod again;
mod arguments;
#[cfg(feature = "soc")]
mod carrier;
#[cfg(feature = "soc")]
mod changed_rules;
#[cfg(feature = "edge")]
mod client;
mod commands;
#[cfg(feature = "edge")]
mod config;
#[cfg(feature = "edge")]
mod confirm;
#[cfg(feature = "edge")]
mod confirmed;
#[cfg(feature = "edge")]
mod confirming;
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
#[cfg(feature = "soc")]
mod lake;
#[cfg(feature = "edge")]
mod nats;
#[cfg(feature = "soc")]
mod own_ledgers;
#[cfg(feature = "edge")]
mod parts;
#[cfg(feature = "soc")]
mod past_lanes;
#[cfg(feature = "edge")]
mod peers;
#[cfg(feature = "edge")]
mod prune;
#[cfg(feature = "soc")]
mod rule_trial;
#[cfg(feature = "edge")]
mod serve;
#[cfg(feature = "edge")]
mod socket;
#[cfg(feature = "control")]
mod store;
#[cfg(feature = "soc")]
mod up;
#[cfg(feature = "control")]
mod users;
mod verifying;

use std::process::ExitCode;

#[cfg(feature = "edge")]
use arguments::policy::PolicyCommand;
#[cfg(feature = "soc")]
use arguments::rules::RulesCommand;
#[cfg(feature = "control")]
use arguments::running::KeysCommand;
#[cfg(feature = "edge")]
use arguments::running::{EdgeArgs, EdgeCommand, StreamsCommand};
use arguments::{Command, ReceiptsCommand};

/// Most of a call's own time went into allocating; this allocator halves that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = arguments::parse();
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
        Command::Rules(RulesCommand::Switch(args)) => commands::every_tenant::switch(&args),
        #[cfg(feature = "soc")]
        Command::Rules(RulesCommand::History(args)) => commands::activate::history(&args),
        #[cfg(feature = "edge")]
        Command::Policy(PolicyCommand::Validate { files, tools, json }) => {
            commands::policy::validate(&files, tools.as_deref(), json)
        }
        #[cfg(feature = "edge")]
        Command::Policy(PolicyCommand::Simulate(args)) => commands::simulate::simulate(&args),
        #[cfg(feature = "control")]
        Command::Streams(StreamsCommand::Plan { args, users }) => commands::streams::plan(&args, users.as_deref()),
        #[cfg(all(feature = "edge", not(feature = "control")))]
        Command::Streams(StreamsCommand::Plan { args }) => commands::streams::plan(&args, None),
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
