//! `aegis streams`: the NATS server's streams and buckets, compared with the files that this program was built with, and made so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use aegis_bus::definitions::{Change, Difference, Planned, Settings, wanted};
use aegis_bus::{BusError, JetStreamBus, JetStreamOptions, Login, Servers};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::SAID_NO;
use crate::nats::NatsArgs;

/// `aegis streams plan` and `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct StreamsArgs {
    #[command(flatten)]
    nats: NatsArgs,
    /// Control's data folder: log in as `admin`, whose login `aegis streams users` made there
    #[arg(long, value_name = "DIR", conflicts_with = "nkey")]
    data: Option<PathBuf>,
    /// Copies of every stream in a cluster, 1 to 5 [default: 1]
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
    /// Most bytes of a stream, e.g. ASE=64GiB; repeatable
    #[arg(long = "max-bytes", value_name = "STREAM=SIZE", value_parser = size_of_stream)]
    max_bytes: Vec<(String, u64)>,
    /// How long a stream keeps a message, e.g. APPROVALS=2d; 0 for ever; repeatable
    #[arg(long = "max-age", value_name = "STREAM=TIME", value_parser = age_of_stream)]
    max_age: Vec<(String, u64)>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// `SIZE` in bytes, or with a unit.
fn size_of_stream(text: &str) -> Result<(String, u64), String> {
    of_stream(text, &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)])
}

/// `TIME` in seconds, or with a unit.
fn age_of_stream(text: &str) -> Result<(String, u64), String> {
    of_stream(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86400)])
}

fn of_stream(text: &str, units: &[(&str, u64)]) -> Result<(String, u64), String> {
    let (stream, amount) = text.split_once('=').ok_or_else(|| "it must be STREAM=AMOUNT".to_owned())?;
    let unit = units.iter().find_map(|(unit, factor)| amount.strip_suffix(unit).map(|number| (number, *factor)));
    let (number, factor) = unit.unwrap_or((amount, 1));
    let number: u64 = number.parse().map_err(|_| {
        let units: Vec<&str> = units.iter().map(|(unit, _)| *unit).collect();
        format!("`{amount}` is not a whole number, alone or with one of {}", units.join(", "))
    })?;
    let amount = number.checked_mul(factor).ok_or_else(|| format!("`{amount}` is too much"))?;
    Ok((stream.to_owned(), amount))
}

impl StreamsArgs {
    fn settings(&self) -> Settings {
        Settings {
            replicas: self.replicas,
            max_bytes: self.max_bytes.iter().cloned().collect::<BTreeMap<_, _>>(),
            max_age_s: self.max_age.iter().cloned().collect(),
        }
    }

    fn options(&self) -> anyhow::Result<JetStreamOptions> {
        let mut options = self.nats.options("aegis-streams")?;
        if let Some(data) = &self.data {
            let seed = crate::nats::read_seed(&crate::nats::admin_nkey_file(data))?;
            options.login = Login::Nkey { seed };
            options.inbox_prefix = aegis_bus::users::inbox_prefix("admin");
        }
        if options.servers.is_empty() {
            bail!("name a NATS server with --nats, e.g. --nats nats://127.0.0.1:4222");
        }
        Ok(options)
    }
}

/// Shows what would change; exit 1 if anything would.
pub(crate) fn plan(args: &StreamsArgs) -> anyhow::Result<ExitCode> {
    let wanted = wanted(&args.settings())?;
    let options = args.options()?;
    let planned = super::runtime()?.block_on(async {
        let bus = JetStreamBus::connect(&options).await?;
        Ok::<_, BusError>((bus.find_servers().await?, bus.plan_streams(&wanted).await?))
    });
    let (servers, plan) = planned.with_context(|| format!("the streams of {}", options.servers.join(", ")))?;
    let differs = plan.iter().any(|planned| planned.change != Change::None);
    show(&servers, &plan, args.json, false);
    Ok(if differs { ExitCode::from(SAID_NO) } else { ExitCode::SUCCESS })
}

/// Makes the server's streams as they should be.
pub(crate) fn apply(args: &StreamsArgs, may_lose: &[String]) -> anyhow::Result<ExitCode> {
    let wanted = wanted(&args.settings())?;
    let options = args.options()?;
    let applied = super::runtime()?.block_on(async {
        let bus = JetStreamBus::connect(&options).await?;
        Ok::<_, BusError>((bus.find_servers().await?, bus.apply_streams(&wanted, may_lose).await?))
    });
    let (servers, done) = applied.with_context(|| format!("the streams of {}", options.servers.join(", ")))?;
    show(&servers, &done, args.json, true);
    Ok(ExitCode::SUCCESS)
}

/// Prints the server's users, or writes them to a file.
#[cfg(feature = "control")]
pub(crate) fn users(data: &std::path::Path, file: Option<&std::path::Path>) -> anyhow::Result<ExitCode> {
    crate::parts::make_private_folder(data)?;
    if crate::users::make_logins(data)? {
        eprintln!(
            "aegis: each role has a login of its own now. Write these users where the NATS server reads them, restart it or reload it twice, and restart \
             the control plane: as long as it runs with one user, the server refuses what that may no more"
        );
    }
    let text = super::runtime()?.block_on(async {
        let clock = std::sync::Arc::new(aegis_model::SystemClock);
        let store = crate::store::open_beside(data, clock).await?;
        crate::users::of(data, std::path::Path::new(""), &store).await
    })?;
    match file {
        Some(file) => crate::users::write(file, &text)?,
        None => print!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(servers: &Servers, plan: &[Planned], as_json: bool, done: bool) {
    if as_json {
        println!("{}", json!({ "servers": servers, "streams": plan }));
        return;
    }
    println!("{servers}");
    for Planned { name, change } in plan {
        match change {
            Change::Create => println!("{name:<16} {}", if done { "created" } else { "to be created" }),
            Change::None => println!("{name:<16} as it should be"),
            Change::Update { differences } => {
                println!("{name:<16} {}", if done { "changed" } else { "to be changed" });
                differences.iter().for_each(show_difference);
            }
        }
    }
}

fn show_difference(difference: &Difference) {
    let Difference { field, server, wanted, loses } = difference;
    let text = |value: &Value| if value.is_null() { "nothing".to_owned() } else { value.to_string() };
    let loses = loses.as_ref().map(|loses| format!("   LOSES {loses}")).unwrap_or_default();
    println!("{:<16}   {field}: {} -> {}{loses}", "", text(server), text(wanted));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        assert_eq!(size_of_stream("ASE=64GiB").unwrap(), ("ASE".to_owned(), 64 << 30));
        assert_eq!(size_of_stream("ASE=7").unwrap().1, 7);
        assert_eq!(age_of_stream("APPROVALS=2d").unwrap().1, 172_800);
        assert_eq!(age_of_stream("APPROVALS=0").unwrap().1, 0);
        for bad in ["ASE", "ASE=", "ASE=GiB", "ASE=-1", "ASE=1GB", "ASE=99999999999TiB"] {
            size_of_stream(bad).unwrap_err();
        }
    }
}
